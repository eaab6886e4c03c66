import csv
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nlvideo.evaluation import intervals, metrics
from nlvideo.evaluation.comparison import accuracy_differences
from nlvideo.evaluation.result_files import read_results
from nlvideo.evaluation.significance import mcnemar_p

TOOL = Path(__file__).parents[2] / "tools" / "compare_runs.py"
CLASSES = ["walk", "run", "jump", "sit", "swim", "climb"]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture
def compare(tool, monkeypatch, capsys):
    """Returns a function that runs the tool in this process: arguments -> (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, arguments)])
        status, message = 0, ""
        try:
            tool["main"]()
        except SystemExit as end:
            status, message = (1, str(end.code)) if isinstance(end.code, str) else (end.code, "")
        out, err = capsys.readouterr()
        return status, out, err + message

    return call


def write_run(
    folder: Path, scores, targets, *, ids=None, classes=CLASSES, pooling="mean", views=None, **result
) -> Path:
    folder.mkdir(parents=True)
    ids = [f"{v:03d}.mp4" for v in range(len(scores))] if ids is None else ids
    np.savez(folder / "scores.npz", ids=np.array(ids), classes=np.array(classes),
             scores=np.asarray(scores, np.float32), targets=np.asarray(targets))  # fmt: skip
    views = {"num_clips": 10, "num_crops": 3, "pooling": pooling} | (views or {})
    (folder / "result.json").write_text(json.dumps({"views": views} | result))
    return folder


def best(classes, num_classes=6) -> np.ndarray:
    """Returns scores whose best classes are these."""
    return 0.1 + 0.4 * np.eye(num_classes)[np.asarray(classes)]


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def cells(out: str, first: str) -> list[str]:
    """Returns the cells of the printed line that begins with this one."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    return next(line for line in lines if line[0] == first)


@pytest.fixture
def planted(tmp_path):
    """Two runs of 60 videos, 10 a class: B fixes 000 and 001, breaks 010, and errs otherwise in 020."""
    targets = np.repeat(np.arange(6), 10)
    a, b = targets.copy(), targets.copy()
    a[[0, 1]] = 3
    b[10] = 4
    a[20], b[20] = 4, 5
    return write_run(tmp_path / "a", best(a), targets), write_run(tmp_path / "b", best(b), targets)


def test_planted_changes_are_reported(planted, compare, tmp_path):
    status, out, err = compare(*planted, "--output", tmp_path / "out")
    assert status == 0, err
    changed = {row["video"]: row for row in rows_of(tmp_path / "out/changed.csv")}
    assert {video: row["change"] for video, row in changed.items()} == {
        "000.mp4": "fixed", "001.mp4": "fixed", "010.mp4": "broken", "020.mp4": "other"}  # fmt: skip
    assert list(changed["020.mp4"].values()) == [
        str(planted[1]), "020.mp4", "jump", "other", "swim", "0.500000", "climb", "0.500000"]  # fmt: skip
    assert "videos with a different best class: 4 (2 fixed, 1 broken, 1 other)" in out
    classes = rows_of(tmp_path / "out/classes.csv")
    assert [(row["class"], float(row["gain"])) for row in classes] == [
        ("walk", 0.2), ("jump", 0), ("sit", 0), ("swim", 0), ("climb", 0), ("run", -0.1)]  # fmt: skip
    assert all(row["videos"] == "10" for row in classes)
    assert cells(out, "walk") == ["walk", "10", "80.00", "100.00", "+20.00"]
    assert cells(out, "A")[2:4] == ["60", "95.00"] and cells(out, "B")[2:4] == ["60", "96.67"]
    assert "only A right b = 1, only B right c = 2, p = 1\n" in out
    assert "B is better by 1.67 points in top-1, between -" in out and "inconclusive on these 60 videos." in out
    with Image.open(tmp_path / "out/comparison.png") as picture:
        assert min(picture.size) > 300


def test_nothing_is_written_by_default(planted, compare, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert compare(*planted)[0] == 0 and sorted(tmp_path.rglob("*")) == before


def test_the_number_of_classes_printed(planted, compare):
    gain = "│ +20.00 │"
    assert gain in compare(*planted, "--classes", 1)[1]
    out = compare(*planted, "--classes", 0)[1]
    assert gain not in out and "gains and losses, top-1 in %: none" in out


@pytest.mark.parametrize(("b", "c"), [(0, 5), (3, 12), (8, 8), (1, 0), (0, 0), (40, 20)])
def test_mcnemar_equals_the_sum_of_binomial_coefficients(b, c):
    n = b + c
    by_hand = min(1, 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n)
    assert mcnemar_p((b, c)) == pytest.approx(by_hand)


def test_the_paired_interval_is_narrower_and_contains_the_true_difference(tmp_path):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 6, 800)
    wrong = (targets + 1) % 6
    draw = generator.random(800)
    # over the population A gets 50 % right, B the same ones and 3 % more
    a, b = (write_run(tmp_path / name, best(np.where(draw < share, targets, wrong)), targets)
            for name, share in (("a", 0.5), ("b", 0.53)))  # fmt: skip
    found = accuracy_differences(read_results(b), read_results(a))
    right_a, right_b = draw < 0.5, draw < 0.53
    low, high = found["top1"].interval.ends
    assert found["top1"].value == pytest.approx(right_b.mean() - right_a.mean()) and 0 < low <= 0.03 <= high
    unpaired = np.subtract(intervals.accuracy_interval(right_b).ends, intervals.accuracy_interval(right_a).ends[::-1])
    assert high - low < 0.5 * (unpaired[1] - unpaired[0])
    # the ends are near those of the difference of the runs' resampled accuracies
    both = intervals.bootstrap(lambda w: w @ right_b / w.sum(1) - w @ right_a / w.sum(1), 800)
    assert (low, high) == pytest.approx(both.ends, abs=0.004)
    assert found["mean_class_accuracy"].interval.ends == pytest.approx([low, high], abs=0.01)
    assert found["top5"].interval.low <= found["top5"].value <= found["top5"].interval.high


def test_a_clear_difference_is_reported_in_both_directions(compare, tmp_path):
    targets = np.arange(60) % 6
    a = write_run(tmp_path / "a", best(np.where(np.arange(60) < 30, targets, (targets + 1) % 6)), targets)
    b = write_run(tmp_path / "b", best(targets), targets)
    assert "B is better by 50.00 points in top-1, between +" in (out := compare(a, b)[1])
    assert "more than the choice of these 60 videos explains." in out
    assert "B is worse by 50.00 points in top-1, between -" in compare(b, a)[1]


def test_several_runs_have_a_p_that_holds_for_all_of_them(compare, tmp_path):
    targets = np.arange(60) % 6

    def right(name: str, count: int) -> Path:
        return write_run(tmp_path / name, best(np.where(np.arange(60) < count, targets, (targets + 1) % 6)), targets)

    out = compare(*(right(name, count) for name, count in (("a", 30), ("b", 40), ("c", 36), ("d", 30))))[1]
    table = out[out.index("all against A: top-1") :]
    # ten, six and no videos gained: McNemar's p of 2 / 2^10, 2 / 2^6 and 1, times 3, 2 and 1
    assert [cells(table, name)[3:5] for name in "BCD"] == [["0.002", "0.006"], ["0.031", "0.062"], ["1.000", "1.000"]]
    b = np.repeat([1, 0], [10, 50])
    assert float(cells(table, "B")[5]) == pytest.approx(280 * b.std(ddof=1) / 60**0.5, rel=0.03)
    assert cells(table, "D")[5] == "-" and "adjusted for 3 comparisons" in table


def test_a_difference_is_inconclusive_where_mcnemars_test_leaves_it_open(compare, tmp_path):
    """Four videos gained of 160 and none lost: the interval leaves zero out, the exact p of 1/8 does not."""
    targets = np.arange(160) % 6
    a, b = (write_run(tmp_path / name, best(np.where(np.arange(160) < right, targets, (targets + 1) % 6)), targets)
            for name, right in (("a", 100), ("b", 104)))  # fmt: skip
    out = compare(a, b)[1]
    assert cells(out, "top-1")[2:] == ["+0.10 to +6.25", intervals.TANGO] and "p = 0.125\n" in out
    assert "B is better by 2.50 points in top-1, between +0.10 and +6.25: inconclusive on these 160 videos." in out


def test_equal_runs_and_tied_scores(compare, tmp_path):
    """Ties are broken by class order: the first class is the best."""
    targets = np.array([0, 1, 2, 0] * 5)
    tied = np.ones((20, 6))
    a, same, other = (write_run(tmp_path / name, scores, targets)
                      for name, scores in (("a", tied), ("same", 2 * tied), ("other", best([0] * 20))))  # fmt: skip
    for run in (same, other):
        status, out, err = compare(a, run, "--output", tmp_path / "out")
        assert status == 0, err
        assert "b = 0, only B right c = 0, p = 1\n" in out and "a different best class: 0 (0 fixed" in out
        assert "B and A have equal top-1 on these 20 videos, and in every resample of them." in out
        assert cells(out, "top-1")[2:] == ["-16.11 to +16.11", intervals.TANGO]  # Wilson's upper end of 0 of 20
        assert "they may differ by 16.11 points." in out
    assert cells(out, "A")[3] == "50.00"


def test_undecodable_videos_are_wrong(compare, tmp_path):
    targets = np.arange(12) % 6
    a, b = best(targets), best(targets)
    a[[0, 3]] = np.nan
    b[[3, 5]] = np.nan
    a, b = write_run(tmp_path / "a", a, targets), write_run(tmp_path / "b", b, targets)
    status, out, err = compare(a, b, "--output", tmp_path / "out", "--ensemble", tmp_path / "mean.npz")
    assert status == 0, err
    assert "note: A: 2 undecodable, counted as wrong (000.mp4, 003.mp4)" in out and "note: B: 2 undecodable" in out
    rows = [row for row in rows_of(tmp_path / "out/changed.csv") if row["run"] == str(b)]
    assert [(row["video"], row["change"], row["baseline best"], row["score"]) for row in rows] == [
        ("000.mp4", "fixed", "", "0.500000"), ("005.mp4", "broken", "climb", "")]  # fmt: skip
    assert "note: ensemble: 2 videos are averaged over only the runs that decoded them" in out
    with np.load(tmp_path / "mean.npz") as held:
        assert np.flatnonzero(np.isnan(held["scores"]).any(1)).tolist() == [3]


def test_undecodable_videos_are_wrong_among_few_classes_too(compare, tmp_path):
    targets, bad = np.arange(9) % 3, best(np.arange(9) % 3, 3)
    bad[4] = np.nan
    runs = [write_run(tmp_path / name, scores, targets, classes=CLASSES[:3])
            for name, scores in (("a", best(targets, 3)), ("b", bad))]  # fmt: skip
    out = compare(*runs)[1]
    assert cells(out, "A")[3:5] == ["100.00", "100.00"] and cells(out, "B")[3:5] == ["88.89", "88.89"]
    assert cells(out, "top-5")[1] == "-11.11"


def multi_label(seed=0, videos=80):
    generator = np.random.default_rng(seed)
    targets = generator.random((videos, 6)) < 0.3
    targets[:, 4] = False  # a class without positives
    targets[:5] = False  # videos without actions
    return generator.random((videos, 6)) + 0.3 * targets, targets, generator


def test_several_multi_label_runs_have_no_p(compare, tmp_path):
    a, targets, generator = multi_label()
    shifted = (a + shift * targets for shift in (0, 0.1, 0.2))
    out = compare(*(write_run(tmp_path / name, one, targets) for name, one in zip("abc", shifted, strict=True)))[1]
    table = out[out.index("all against A: mAP") :]
    assert [cells(table, name)[3:5] for name in "BC"] == [["-", "-"]] * 2 and float(cells(table, "C")[5]) > 0
    assert "p: none for multi-label data; detectable: " in table and "Holm's" not in table


def test_multi_label(compare, tmp_path):
    a, targets, generator = multi_label()
    b = (a + 0.02 * generator.random(a.shape)).astype(np.float32)
    b[10] = a[10] + 3 * targets[10]
    b[20] = a[20] - 3 * targets[20]
    b[:5] += 9  # videos without actions come last whatever their scores
    b[30] = a[30]
    targets[[10, 20, 30], 1] = True
    b[10, 1], b[20, 1], b[30, 1] = 5, -5, a[30, 1]
    folders = write_run(tmp_path / "a", a, targets), write_run(tmp_path / "b", b, targets)
    status, out, err = compare(*folders, "--output", tmp_path / "out", "--classes", 2)
    assert status == 0, err
    a = a.astype(np.float32)
    precisions = [metrics.average_precisions(metrics.without_actions_last(x, targets), targets) for x in (a, b)]
    means = [100 * np.nanmean(values) for values in precisions]
    assert [cells(out, name)[3] for name in "AB"] == [f"{mean:.2f}" for mean in means]
    assert cells(out, "mAP")[1] == f"{means[1] - means[0]:+.2f}"
    low, high = map(float, cells(out, "mAP")[2].split(" to "))
    assert low < means[1] - means[0] < high and high - low < 10
    assert "no McNemar test" in out and "of the resamples" in out and "points in mAP" in out
    gains = {row["class"]: float(row["gain"]) for row in rows_of(tmp_path / "out/classes.csv")}
    assert gains == pytest.approx(
        {name: gain for name, gain in zip(CLASSES, precisions[1] - precisions[0], strict=True) if name != "swim"},
        abs=1e-6,
    )
    changed = rows_of(tmp_path / "out/changed.csv")
    assert (changed[0]["video"], changed[0]["change"]) == ("010.mp4", "risen")
    assert (changed[-1]["video"], changed[-1]["change"]) == ("020.mp4", "fallen")
    assert float(changed[0]["score"]) == pytest.approx(b[10][targets[10]].mean(), abs=1e-5)
    assert "run" in changed[0]["target"].split(";")
    assert not {"000.mp4", "030.mp4"} & {row["video"] for row in changed}


def test_multi_label_equal_undecodable_and_without_actions(compare, tmp_path):
    a, targets, _ = multi_label()
    b = a.copy()
    b[7] = np.nan
    targets[7, 0] = True
    runs = [write_run(tmp_path / name, scores, targets) for name, scores in (("a", a), ("b", b), ("c", a))]
    status, out, err = compare(*runs)
    assert status == 0, err
    assert "(0 risen, 0 fallen, 1 decoded by one)" in out and "undecodable │" in out
    assert "C and A have equal mAP" in out
    none = [write_run(tmp_path / f"none{i}", a, np.zeros_like(targets)) for i in range(2)]
    status, _, err = compare(*none)
    assert status == 1 and err.startswith("error: No video of the list has an action")


def test_the_ensemble_is_the_mean(compare, tmp_path):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 6, 50)
    scores = generator.random((3, 50, 6)).astype(np.float32)
    shuffled, classes = generator.permutation(50), [3, 0, 5, 1, 2, 4]
    runs = [write_run(tmp_path / name, scores[i], targets) for i, name in enumerate("ab")]
    ids = [f"{v:03d}.mp4" for v in shuffled]
    runs.append(write_run(tmp_path / "c", scores[2][shuffled][:, classes], np.argsort(classes)[targets[shuffled]],
                          ids=ids, classes=[CLASSES[k] for k in classes]))  # fmt: skip
    status, out, err = compare(*runs, "--ensemble", tmp_path / "mean")
    assert status == 0, err
    with np.load(tmp_path / "mean/scores.npz") as held, np.load(runs[0] / "scores.npz") as first:
        np.testing.assert_allclose(held["scores"], np.mean(scores, 0), rtol=1e-6)
        assert all((held[key] == first[key]).all() for key in ("ids", "classes", "targets"))
        assert {key: held[key].dtype for key in held} == {key: first[key].dtype for key in first}
    top1 = 100 * np.mean(np.mean(scores, 0).argmax(1) == targets)
    assert cells(out, "ensemble")[3] == f"{top1:.2f}" and "ensemble against A" in out
    assert cells(out, "C")[3] == f"{100 * np.mean(scores[2].argmax(1) == targets):.2f}"

    assert compare(*runs, "--ensemble", tmp_path / "w.npz", "--weights", 1, 2, 0.5)[0] == 0
    with np.load(tmp_path / "w.npz") as held:
        np.testing.assert_allclose(held["scores"], np.average(scores, 0, [1, 2, 0.5]), rtol=1e-6)


def test_scores_on_different_scales_are_not_averaged(compare, tmp_path):
    targets = np.arange(12) % 6
    runs = [write_run(tmp_path / pooling, best(targets), targets, pooling=pooling) for pooling in ("mean", "sum")]
    status, _, err = compare(*runs, "--ensemble", tmp_path / "mean.npz")
    assert status == 1 and err.startswith("error: ") and "different scales: A mean, B sum" in err
    assert not (tmp_path / "mean.npz").exists()
    assert "differ in: views.pooling (mean | sum)" in compare(*runs)[1]
    fewer = write_run(tmp_path / "fewer", best(targets), targets, pooling="sum", views={"num_clips": 1})
    status, out, _ = compare(runs[1], fewer, "--ensemble", tmp_path / "mean.npz")
    assert status == 0 and "sums over more views weigh more; --weights can balance them" in out


def test_differing_settings_are_reported(compare, tmp_path):
    targets = np.arange(12) % 6
    same = {"num_frames": 8, "step": 10, "precision": "float32"}
    a, b, moved = (
        write_run(tmp_path / name, best(targets), targets, views=views, batch_norm=norm, checkpoint=f"{name}.pt",
                  checkpoint_sha256=digest, **same)
        for name, views, norm, digest in (("a", {}, "running", "01"), ("b", {"num_clips": 1}, "precise", "02"),
                                          ("moved", {}, "running", "01"))
    )  # fmt: skip
    out = compare(a, b, moved)[1]
    expected = "checkpoint (a.pt, step 10, 01 | b.pt, step 10, 02), views.num_clips (10 | 1), batch_norm (running | pre"
    assert f"note: differ in: {expected}cise)" in out
    assert out.count("differ in") == 1  # the same checkpoint at another path is no difference


def test_differing_lists(compare, tmp_path):
    targets = np.arange(12) % 6
    ids = np.array([f"v{i}" for i in range(12)])
    scores = best(targets)
    a = write_run(tmp_path / "a", scores, targets, ids=ids)
    keep = [11, 3, 4, 5, 6, 7, 8, 9, 10]  # another order, without the first three
    wrong = scores[keep].copy()
    wrong[0] = best([0])
    b = write_run(tmp_path / "b", np.vstack([wrong, scores[:1]]), [*targets[keep], 0], ids=[*ids[keep], "new"])
    status, _, err = compare(a, b)
    assert status == 1 and err == (
        "error: A and B scored different videos: 3 only in A (v0, v1, v2), 1 only in B (new); "
        "use --common to compare the 9 that both have."
    )
    status, out, err = compare(a, b, "--common")
    assert status == 0, err
    assert "note: A: 3 of 12 videos left out" in out and "note: B: 1 of 10 videos left out" in out
    assert cells(out, "A")[2:4] == ["9", "100.00"] and cells(out, "B")[2:4] == ["9", "88.89"]
    assert "only A right b = 1, only B right c = 0" in out and "v11" in out

    other = targets.copy()
    other[[4, 5]] = 0
    c = write_run(tmp_path / "c", scores, other, ids=ids)
    for arguments in ((a, c), (a, c, "--common"), (b, c, "--common")):
        status, _, err = compare(*arguments)
        assert status == 1 and "A and B have different targets for 2 of " in err and "(v4, v5)" in err
    apart = write_run(tmp_path / "apart", scores, targets, ids=np.char.add("x", ids))
    status, _, err = compare(a, apart, "--common")
    assert status == 1 and err == "error: No video is in all of the lists."
    twice = write_run(tmp_path / "twice", scores, targets, ids=[*ids[:-1], "v0"])
    status, _, err = compare(a, twice, "--common")
    assert status == 1 and "The list of B repeats videos (v0)" in err


def test_incomparable_runs_are_refused(compare, planted, tmp_path):
    a, b = planted
    targets = np.repeat(np.arange(6), 10)
    many = write_run(tmp_path / "many", best(targets), np.eye(6, dtype=bool)[targets])
    named = write_run(tmp_path / "named", best(targets), targets, classes=[*CLASSES[:-1], "fly"])
    unfinished = write_run(tmp_path / "unfinished", best(targets), targets)
    (unfinished / "result.json").unlink()
    cut = write_run(tmp_path / "cut", best(targets), targets)
    (cut / "scores.npz").write_bytes((a / "scores.npz").read_bytes()[:500])
    empty = write_run(tmp_path / "empty", best(targets), targets)
    (empty / "scores.npz").write_bytes(b"")
    unfit = write_run(tmp_path / "unfit", best(targets)[:-1], targets)
    out, mean = ("--output", tmp_path / "out"), ("--ensemble", tmp_path / "mean.npz")
    for arguments, message in (
        ([a, many], "A is single-label, B multi-label: they share no metric"),
        ([a, named], "The classes of A and B differ: 1 only in A (climb), 1 only in B (fly)"),
        ([a, unfinished], "holds no finished evaluation: result.json is missing"),
        ([a, tmp_path / "nowhere"], "nowhere holds no finished evaluation"),
        ([a, cut], "cut holds no evaluation that can be read"),
        ([a, empty], "empty holds no evaluation that can be read"),
        ([a, unfit], "unfit holds no evaluation that can be read: its arrays do not fit together"),
        ([a, b, a / "../b"], "are the same folder"),
        ([a, b, "--classes", -1], "--classes -1: must not be negative"),
        ([a, b, "--weights", 1, 2], "--weights has no effect without --ensemble"),
        ([a, b, *mean, "--weights", 1], "--weights 1: give a positive number for each of the 2 folders"),
        ([a, b, *mean, "--weights", 1, 0], "a positive number for each of the 2 folders"),
        ([a, b, "--output", b], "holds an evaluation, which would be overwritten"),
        ([a, b, "--output", tmp_path / "a/result.json/x"], "cannot create the folder"),
        ([a, b, "--ensemble", b], "its folder holds an evaluation"),
        ([a, b, "--ensemble", b / "scores.npz"], "its folder holds an evaluation"),
    ):
        status, _, err = compare(*arguments, *([] if "--output" in arguments else out))
        assert status == 1 and message in err and err.startswith("error: ") and "\n" not in err, (arguments, err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "mean.npz").exists()


def test_many_classes_are_plotted_without_names(compare, tmp_path):
    generator = np.random.default_rng(0)
    targets, classes = np.arange(140) % 70, [f"class number {k} of those with a [long] name" for k in range(70)]
    runs = [write_run(tmp_path / name, generator.random((140, 70)) + np.eye(70)[targets] * 0.5, targets,
                      classes=classes) for name in "abc"]  # fmt: skip
    status, out, err = compare(*runs, "--output", tmp_path / "out")
    assert status == 0, err
    assert "of those with a [long] name │" in out and "C against A" in out
    assert len(rows_of(tmp_path / "out/classes.csv")) == 2 * 70
    with Image.open(tmp_path / "out/comparison.png") as picture:
        assert picture.width > 1000 and picture.height < 1500
