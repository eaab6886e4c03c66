import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/fights_folds.py"
WIDE, HIGH = (240, 320), (320, 240)


@pytest.fixture
def groups():
    """{place in the list: number of the recording}"""
    place = [0, 2, 10, 13, 19, 20, 30, 31, 39]
    pictures = np.random.default_rng(0).standard_normal((len(place), 768))
    pictures[place.index(30)] = pictures[place.index(0)]
    pictures[place.index(39)] = pictures[place.index(10)]  # which has another size
    sizes = tuple(HIGH if i in (31, 39) else WIDE for i in place)
    module = runpy.run_path(str(SCRIPT))
    module["recordings"].__globals__["RARE"] = 2
    labels = np.array(place) // 20
    return dict(zip(place, module["recordings"](pictures, sizes, labels, np.array(place)), strict=True))


@pytest.mark.parametrize(
    ("a", "b", "together"),
    [
        (0, 30, True),  # look alike
        (0, 2, True),  # neighbours
        (10, 13, False),  # too far apart
        (19, 20, False),  # neighbours, of which one is a fight
        (31, 39, True),  # of a size that few have
        (10, 39, False),  # look alike, but have two sizes
        (30, 31, False),
    ],
)
def test_clips_of_one_recording_stay_together(groups, a, b, together):
    assert (groups[a] == groups[b]) == together
