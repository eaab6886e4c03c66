"""Reports of made-up scores, for videos that are there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.lists.path_list import read_table
from nlvideo.evaluation.report import Opening, write_report
from nlvideo.evaluation.result_files import read_results, write_results
from nlvideo.evaluation.summary import Scores, summarize


def write_fake_report(
    videos: Path,
    out: Path,
    scores: Sequence[Sequence[float]] | np.ndarray,
    opener: Opening = open_video,
    *,
    source: str | Path = "val.csv",
    num_classes: int | None = None,
    pooling: str = "mean",
    multi_label: bool = False,
) -> Path:
    """Writes an evaluation with these scores (V, K) of a list of video_folder into `out`; returns its report."""
    table = read_table(str(videos), str(source), None, num_classes, multi_label=multi_label)
    scores = np.asarray(scores, np.float32)
    failures = {i: "cut short" for i in np.flatnonzero(np.isnan(scores).any(1)).tolist()}
    ranks = np.zeros((len(scores), 13), np.int64)
    after = np.repeat(scores[:, None], 13, axis=1) if multi_label else ranks  # of 10 clips and 3 crops
    found = Scores(scores, after, np.empty((len(scores), 0, scores.shape[1]), np.float32), failures)
    result = summarize(found, table, num_clips=10, pooling=pooling)
    result |= {
        "checkpoint": "run/checkpoint.pt",
        "step": 7,
        "views": {"num_clips": 10, "num_crops": 3, "pooling": pooling},
    }
    write_results(out, result, found, table)
    return write_report(read_results(out), table, opener)
