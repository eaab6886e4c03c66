"""Which videos an epoch draws: every one once, or as often as the classes are to be balanced."""

import numpy as np
import pytest

from nlvideo.build.tables import read_train_table
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.batch import SampleKey
from nlvideo.data.clips.epoch_order import EpochOrder, expected_draws
from nlvideo.data.clips.loading import Share, StepSampler
from nlvideo.data.lists.path_list import read_table
from nlvideo.runtime.errors import UserError

COUNTS = (40, 9, 1)  # videos of each class


def table_of(folder, rows, **options):
    """A table of videos that are never opened, with these labels."""
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{row}\n" for i, row in enumerate(rows)))
    return read_table(str(folder), "list.csv", None, **options)


@pytest.fixture
def uneven(tmp_path):
    return table_of(tmp_path, [k for k, count in enumerate(COUNTS) for _ in range(count)])


@pytest.fixture
def several(tmp_path):
    """Videos with several labels or none: 20 of a, 5 of a and b, 4 of c, 3 without."""
    return table_of(tmp_path, ["a"] * 20 + ["a|b"] * 5 + ["c"] * 4 + [""] * 3, multi_label=True)


def test_unbalanced_epochs_are_those_of_the_plain_permutation():
    order = EpochOrder(7, 4)
    for epoch in (0, 1, 9):
        drawn = order.draw(epoch)
        assert drawn.videos.tolist() == np.random.default_rng([4, epoch]).permutation(7).tolist()
        assert not drawn.copies.any()
    # of the commit before there was anything else
    expected = [1, 2, 0, 5, 4, 3, 6, 4, 1, 5, 2, 6, 3, 0, 4, 0, 2, 5, 3, 1, 6]
    assert [key.video for key in order.keys(0, 21)] == expected
    assert order.keys(13, 16) == [SampleKey(1, 0, 0, 13), SampleKey(2, 4, 0, 14), SampleKey(2, 0, 0, 15)]


@pytest.mark.parametrize(("balance", "exponent"), [("none", 1.0), ("sqrt", 0.5), ("classes", 0.0)])
def test_classes_are_drawn_in_proportion(uneven, balance, exponent):
    expected = expected_draws(uneven, balance)
    per_class = np.bincount(uneven.targets, weights=expected)
    wanted = np.array(COUNTS) ** exponent
    np.testing.assert_allclose(per_class, len(uneven) * wanted / wanted.sum())
    order, epochs = EpochOrder(len(uneven), 0, expected), 300
    drawn = [order.draw(epoch) for epoch in range(epochs)]
    counts = np.array([np.bincount(d.videos, minlength=len(uneven)) for d in drawn])
    assert (counts.sum(1) == len(uneven)).all()
    assert (counts >= np.floor(expected - 1e-9)).all() and (counts <= np.ceil(expected + 1e-9)).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=5 * 0.5 / epochs**0.5)


def test_a_video_counts_as_one_of_its_rarest_class(several):
    expected = expected_draws(several, "classes")
    weights = np.array([1 / 25] * 20 + [1 / 5] * 5 + [1 / 4] * 4 + [1 / 3] * 3)  # 25 of a, 5 of b, 4 of c, 3 of none
    np.testing.assert_allclose(expected, 32 * weights / weights.sum())
    np.testing.assert_allclose(expected_draws(several, "none"), 1)
    roots = expected_draws(several, "sqrt")
    np.testing.assert_allclose(roots[-1] / roots[0], (25 / 3) ** 0.5)


def test_copies_count_the_draws_of_a_video_before(uneven):
    order = EpochOrder(len(uneven), 1, expected_draws(uneven, "classes"))
    seen = {}
    for key in order.keys(0, 2 * len(uneven)):
        assert key.copy == seen.get((key.epoch, key.video), 0)
        seen[key.epoch, key.video] = key.copy + 1
    assert max(seen.values()) in (16, 17)  # a third of 50 is the only video of class 2


def test_an_evenly_listed_set_is_drawn_once_each_whatever_the_balance(tmp_path):
    table = table_of(tmp_path, [0, 1, 2] * 7)
    for balance in ("sqrt", "classes"):
        order = EpochOrder(21, 0, expected_draws(table, balance))
        assert all(sorted(order.draw(epoch).videos) == list(range(21)) for epoch in range(50))


@pytest.mark.parametrize("balance", ["none", "sqrt", "classes"])
def test_the_samples_of_a_step_do_not_depend_on_ranks_parts_or_the_first_step(uneven, balance):
    expected = None if balance == "none" else expected_draws(uneven, balance)

    def steps(size, parts, first_step=0):
        """Returns the keys of each step, as ranks with orders of their own read them."""
        samplers = [
            list(
                StepSampler(
                    EpochOrder(len(uneven), 2, expected),
                    Share(8, rank, size, parts),
                    first_step=first_step,
                    last_step=15,
                )
            )
            for rank in range(size)
        ]
        return [
            [key for keys in samplers for part in keys[i * parts : (i + 1) * parts] for key in part]
            for i in range(15 - first_step)
        ]

    whole = steps(1, 1)
    assert [key.place for keys in whole for key in keys] == list(range(120))  # two epochs and a part
    for size, parts in ((2, 1), (4, 1), (1, 4), (2, 2)):
        assert steps(size, parts) == whole
    for first_step in (1, 6, 7, 14):
        assert steps(2, 1, first_step) == whole[first_step:]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_without_a_video_is_refused(tmp_path, multi_label):
    (tmp_path / "0.mp4").touch()
    label = "swims|runs" if multi_label else "runs"
    (tmp_path / "train.csv").write_text(f"path,label\n0.mp4,{label}\n0.mp4,swims\n")
    (tmp_path / "names.txt").write_text("jumps\nruns\nswims\nwalks\n")
    data = DataConfig(root=str(tmp_path), classes="names.txt", multi_label=multi_label)
    assert len(read_train_table(data)) == 2
    data.balance = "sqrt"
    with pytest.raises(UserError, match=r"data.balance=sqrt: .*train.csv has no video of 2 \(jumps, walks\) of its 4"):
        read_train_table(data)


def test_two_threads_may_be_in_different_epochs(monkeypatch):
    order, draw = EpochOrder(5, 0, np.ones(5)), EpochOrder.draw
    whole = EpochOrder(5, 0, np.ones(5)).keys(0, 10)

    class Interrupted(np.ndarray):
        def __getitem__(self, i):
            if not order.interrupted:
                order.interrupted = True
                order.keys(7, 8)  # as another thread does
            return super().__getitem__(i)

    def interrupted_draw(self, epoch):
        drawn = draw(self, epoch)
        return drawn._replace(videos=drawn.videos.view(Interrupted), copies=drawn.copies + 10 * epoch)

    monkeypatch.setattr(EpochOrder, "draw", interrupted_draw)
    order.interrupted = False
    assert order.keys(0, 5) == whole[:5] and order.interrupted
