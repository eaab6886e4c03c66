"""What a sweep can show before it is trained: the smallest difference of two rows, for its seeds and videos."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlvideo.build.tables import prepare_data, read_train_table, read_val_table
from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.evaluation.intervals import SAME, wilson
from nlvideo.evaluation.significance import detectable_errors
from nlvideo.experiments.tables import points_cell
from nlvideo.training.run_status import read_status, score_of

OF_A_POINT = "seed", "output_dir", "resume"  # keys in which the points of one row differ


def power_line(configs: Sequence[TrainConfig], finished: Sequence[bool]) -> str:
    """Returns the line on the detectable difference of two rows; points that differ in the seed alone are a row.

    Args:
        configs: of all points, each with its folder.
        finished: whether each is.

    Raises:
        UserError: the lists that the points name cannot be read.
    """
    seeds, scores = defaultdict(set), defaultdict(list)
    for config, done in zip(configs, finished, strict=True):
        row = _row(config)
        seeds[row].add(config.seed)
        score = score_of(read_status(Path(config.output_dir))) if done else None
        if score is not None:
            scores[row].append(score)
    num_seeds = min(map(len, seeds.values()))
    tables = {json.dumps(to_container(config.data)): config for config in configs}.values()
    sizes = [_validation(config) for config in tables]
    num_videos, multi_label = min(size for size, _ in sizes), any(several for _, several in sizes)
    between = f"between two rows of {num_seeds} seed{'s' * (num_seeds > 1)} and {num_videos} validation videos"
    found = by_spread(list(scores.values()), num_seeds)
    if found is not None:
        points, source = found
    elif multi_label:
        return f"detectable  unknown {between}: mAP has no binomial, and there is no spread over finished seeds"
    else:
        points, source = by_binomial([one for row in scores.values() for one in row], num_seeds, num_videos)
    return f"detectable  {points_cell(points)} points {between} (80 % power, two-sided 5 %), {source}"


def by_spread(scores: Sequence[Sequence[float]], num_seeds: int) -> tuple[float, str] | None:
    """Returns the detectable difference in points by the spread of finished seeds, and how; None where it is unknown.

    The test is the paired one over `num_seeds` seeds, whose differences have twice a row's variance.

    Args:
        scores: of each row's finished points, as fractions.
    """
    repeated = [row for row in scores if len(row) > 1]
    freedom = sum(len(row) - 1 for row in repeated)
    deviation = math.sqrt(sum((len(row) - 1) * np.var(row, ddof=1) for row in repeated) / freedom) if freedom else 0.0
    if deviation < SAME or num_seeds < 2:
        return None
    error = deviation * math.sqrt(2 / num_seeds)
    source = (
        f"by the spread of {sum(map(len, repeated))} finished points in {len(repeated)} "
        f"row{'s' * (len(repeated) > 1)}: {100 * deviation:.2f} points over seeds"
    )
    return 100 * error * detectable_errors(num_seeds - 1), source


def by_binomial(scores: Sequence[float], num_seeds: int, num_videos: int) -> tuple[float, str]:
    """Returns the detectable difference in points by the binomial, as if all outcomes were independent, and how.

    Args:
        scores: of finished points, as fractions, whose mean is the accuracy. Without any it is 50 %, the worst. Where
            all are 0 or 1, which would leave no spread, it is the other end of Wilson's interval.
    """
    accuracy = float(np.mean(scores)) if scores else 0.5
    of = f"the mean of {len(scores)} finished" if scores else "nothing is finished"
    if accuracy in (0, 1):
        of = f"Wilson's end, as {of} is {100 * accuracy:.0f} %"
        accuracy = sum(wilson(round(accuracy * num_videos), num_videos).ends) - accuracy
    outcomes = num_seeds * num_videos
    error = math.sqrt(2 * accuracy * (1 - accuracy) / outcomes)
    source = (
        f"by the binomial alone at {100 * accuracy:.1f} % ({of}), as if all outcomes were independent: the spread over "
        "seeds raises it, pairing by video lowers it"
    )
    return 100 * error * detectable_errors(max(1, 2 * (outcomes - 1))), source


def _row(config: TrainConfig) -> str:
    container = {key: value for key, value in to_container(config).items() if key not in OF_A_POINT}
    return json.dumps(container, sort_keys=True).replace(f"seed-{config.seed}/", "seed-*/")  # weights of its own seed


def _validation(config: TrainConfig) -> tuple[int, bool]:
    """Returns the number of validation videos, and whether they have several classes each."""
    prepare_data(config.data)
    table = read_val_table(config.data, read_train_table(config.data).classes)
    return len(table), table.multi_label
