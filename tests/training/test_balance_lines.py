import numpy as np
import pytest

from nlvideo.data.lists.video_table import TableBuilder
from nlvideo.training.balance_lines import class_lines


def table_of(targets, classes):
    builder = TableBuilder()
    for i in range(len(targets)):
        builder.add(f"{i}.mp4")
    return builder.table("", "list.csv", classes, np.asarray(targets))


def test_uneven_classes_are_told_with_what_the_balance_makes_of_them():
    table = table_of([0] * 36 + [1] * 9 + [2] * 3, ("runs", "walks", "jumps"))
    counts = "classes   3 to 36 videos a class, ratio 12.0"
    assert class_lines(table, "none") == [counts, "          runs 36, walks 9, jumps 3"]
    assert class_lines(table, "sqrt") == [
        f"{counts}; data.balance=sqrt draws them 7.7 to 26.8 times an epoch",  # 48 times 3, 6 and 3 ** 0.5 of their sum
        "          runs 36 (26.8), walks 9 (13.4), jumps 3 (7.7)",
    ]
    assert class_lines(table, "classes")[0].endswith("data.balance=classes draws them 16.0 to 16.0 times an epoch")


@pytest.mark.parametrize(("balance", "lines"), [("none", 0), ("sqrt", 1), ("classes", 1)])
def test_even_and_many_classes_take_no_line_or_one(balance, lines):
    table = table_of([*range(20)] * 4 + [3], tuple(map(str, range(20))))
    assert len(class_lines(table, balance)) == lines


def test_clips_of_several_labels_count_for_each():
    targets = np.zeros((10, 3), bool)
    targets[:8, 0] = targets[:2, 1] = True  # eight of a, two of which are of b; two of nothing; none of c
    lines = class_lines(table_of(targets, ("a", "b", "c")), "classes")
    # weights: 1/8 of a alone, 1/2 with b, 1/2 without any
    counts = "classes   2 to 8 videos a class, ratio 4.0"
    assert lines[0] == f"{counts}; data.balance=classes draws them 3.6 to 6.4 times an epoch"
    assert lines[1] == "          a 8 (6.4), b 2 (3.6), c 0 (0.0)"
    assert class_lines(table_of(np.zeros((4, 2), bool), ("a", "b")), "none") == []
