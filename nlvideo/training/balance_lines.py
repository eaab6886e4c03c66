"""What is said before a run about how uneven the classes are, and how often each is drawn."""

import numpy as np

from nlvideo.data.clips.epoch_order import expected_draws
from nlvideo.data.lists.list_warnings import class_counts
from nlvideo.data.lists.video_table import VideoTable

UNEVEN = 1.5  # largest over smallest class: up to that nothing is said
MAX_NAMED = 10  # classes that are counted one by one


def class_lines(table: VideoTable, balance: str) -> list[str]:
    """Returns lines with the videos of each class, their ratio, and how often an epoch draws them if balanced.

    Classes without videos are not counted; the warnings about lists name them.
    """
    counts = class_counts(table)
    held = counts[counts > 0]
    if not len(held) or (balance == "none" and held.max() <= UNEVEN * held.min()):
        return []
    ratio = held.max() / held.min()
    line = f"classes   {held.min()} to {held.max()} videos a class, ratio {ratio:.1f}"
    draws = _draws(table, balance)
    if balance != "none":
        line += f"; data.balance={balance} draws them {draws[counts > 0].min():.1f} to {draws.max():.1f} times an epoch"
    if len(counts) > MAX_NAMED:
        return [line]
    each = zip(table.classes, counts, draws, strict=True)
    named = [f"{name} {count}" + (f" ({drawn:.1f})" if balance != "none" else "") for name, count, drawn in each]
    return [line, f"          {', '.join(named)}"]


def _draws(table: VideoTable, balance: str) -> np.ndarray:
    """Returns (classes,) float64, how many clips of videos with each class an epoch has on average."""
    expected = expected_draws(table, balance)
    if table.multi_label:
        return expected @ table.targets
    return np.bincount(table.targets, weights=expected, minlength=len(table.classes))
