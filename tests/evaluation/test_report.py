"""The report page, from made-up scores of the grey videos."""

import re
from pathlib import Path

import numpy as np
import pytest
from fake_reports import write_fake_report

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.lists.path_list import read_table
from nlvideo.evaluation.summary import Scores, summarize


@pytest.fixture
def written(video_folder, tmp_path):
    """Returns a function that writes a report of these scores (5, K) and returns the page."""

    def write(scores, opener=open_video, **settings) -> str:
        path = write_fake_report(video_folder, tmp_path / "out", scores, opener, **settings)
        assert path == tmp_path / "out/report.html" and not list(path.parent.glob(".*"))
        return path.read_text(encoding="utf-8")

    return write


def cells(*texts: str) -> str:
    return "".join(f'<td class="number">{text}</td>' for text in texts)


SCORES = [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0]]  # targets 0, 1, 2, 0, 1


def test_the_page_is_self_contained(written):
    page = written(SCORES)
    assert page.count("data:image/svg+xml,") == 5 and page.count("data:image/jpeg;base64,") == 20
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "url(" not in page.split("</style>")[0]
    assert "Evaluation of run, step 7" in page and "80.00 %" in page
    assert '<th scope="row">2</th><td>0</td><td class="number">1</td>' in page  # class 2, once confused with class 0
    assert (
        'alt="How often predictions come true, against their score; calibration error' in page
        and "calibration error (ECE)" in page
    )
    assert all(f'<button type="button">{name}</button>' in page for name in ("class", "videos", "precision", "F1"))
    assert '<th scope="row">0</th>' + cells("2", "66.67", "100.00", "80.00") in page
    assert '<th scope="row">2</th>' + cells("1", "", "0.00", "0.00") in page  # never predicted: no precision


def test_a_perfect_score_has_an_interval_with_a_width_and_its_kind(written):
    page = written(np.eye(3)[[0, 1, 2, 0, 1]])
    # Wilson's of 5 of 5 and, since the classes have 2, 2 and 1 videos, of 4 of 4
    for interval in ("56.55 to 100.00 (Wilson)", "51.01 to 100.00 (Wilson, as all resamples agree)"):
        assert f'100.00 %</b><span class="note">{interval}</span>' in page
    assert "100.00 to 100.00" not in page and "Wilson: score interval of a proportion of videos" in page


def test_only_videos_that_do_not_exist_are_counted_as_missing(tmp_path):
    for name in ("x.tar", "a.mp4"):
        (tmp_path / name).write_text("no tar file and no video")
    (tmp_path / "list.csv").write_text("x.tar/a.mp4,0\na.mp4,1\ny.tar/a.mp4,0\nb.mp4,1\nread.mp4,0\n")
    table, failures = read_table(str(tmp_path), "list.csv", None), dict.fromkeys(range(4), "a reason")
    scores = np.array([[np.nan] * 2] * 4 + [[1, 0]], np.float32)
    found = Scores(scores, np.zeros((5, 2), np.int64), np.empty((5, 0, 2), np.float32), failures)
    result = summarize(found, table, num_clips=1, pooling="mean")
    assert (result["num_undecodable"], result["num_missing"]) == (4, 2)


@pytest.mark.parametrize("pooling", ["sum", "max"])
def test_scores_that_are_no_probabilities_have_no_calibration(written, pooling):
    page = written(SCORES, pooling=pooling)
    assert page.count("data:image/svg+xml,") == 4 and "alibration" not in page


def test_worst_videos_come_first_and_undecodable_ones_apart(written):
    scores = np.array(SCORES)
    scores[4] = np.nan
    page = written(scores)
    worst, best = page.index('<h2 id="worst">'), page.index('<h2 id="best">')
    assert page.index("<code>val/a video 2.mp4</code>") < page.index("<code>val/a video 0.mp4</code>") < best
    assert page.index("<code>val/a video 1.mp4</code>", best) < page.index("<code>val/a video 3.mp4</code>", best)
    assert worst < best < page.index("<td><code>val/a video 4.mp4</code></td><td>cut short</td>")
    assert page.count("data:image/jpeg;base64,") == 16


def test_a_video_that_was_removed_has_its_reason_instead_of_a_strip(written):
    def opener(path: str, part=None):
        return open_video(Path(path).with_suffix(".gone"))

    page = written(SCORES, opener)
    assert "data:image/jpeg" not in page and page.count("No such file or directory") == 10


def test_many_classes_are_plotted_without_names(written):
    page = written(np.eye(70)[[0, 1, 2, 0, 1]], num_classes=70)
    assert page.count("data:image/svg+xml,") == 5 and "100.00 %" in page
