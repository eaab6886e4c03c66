from collections import Counter

import numpy as np
import pytest

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.synthetic.relations import (
    ANGLES,
    COLORS,
    DIRECTIONS,
    EVERY,
    Question,
    draw_long_range,
    draw_short_range,
    draw_still,
    questions,
)
from nlvideo.data.synthetic.writing import write_set

SHAPE = {"num_frames": 24, "height": 64}
SETTINGS = SHAPE | {"gap_frames": 12, "distance": 0.25, "num_distractors": 2}


def video(question: Question, seed: int = 0, **changes) -> np.ndarray:
    return draw_long_range(question, np.random.default_rng(seed), **(SETTINGS | changes)).astype(float)


def test_every_question_is_asked_as_often():
    asked = list(questions(288))
    assert set(Counter(asked).values()) == {2} and len(set(asked)) == 4 * 3 * 4 * 3
    assert [question.colors[0] for question in asked[:8]] == 2 * list(COLORS)
    assert all(len(set(q.colors)) == len(set(q.angles)) == 2 for q in asked)
    assert set(Counter(question.angles[0] for question in asked).values()) == {72}  # the other question's classes


def test_only_the_beginning_knows_the_colours_and_only_the_end_which_is_asked():
    """So a model without the beginning is right in 25 %, one without the end in 50 %, whatever it learns."""
    a, b = video(Question(("red", "blue"), (0, 90))), video(Question(("yellow", "green"), (0, 90)))
    assert abs(a[:6] - b[:6]).max() > 50 and abs(a[6:] - b[6:]).max() < 1
    # Asked for the other disc: the same two discs are shown at the beginning, the grey one has the other stripes.
    c = video(Question(("blue", "red"), (90, 0)))
    assert abs(a[18:] - c[18:]).max() > 50
    for window in range(0, 24 - 12 + 1):  # no half of the clip holds both
        assert not (window < 6 and window + 12 > 18)


def test_a_sum_of_scores_of_both_ends_is_right_on_three_of_four_at_most():
    rng = np.random.default_rng(0)
    places = [[(list(COLORS).index(c), ANGLES.index(a)) for c, a in zip(*q, strict=True)] for q in questions(144)]
    beginnings = sorted({tuple(sorted(discs)) for discs in places})
    early, late = np.full((len(beginnings), 4), -1e3), np.outer(np.arange(4), np.arange(4)).astype(float)
    for i, ((first, one), (second, other)) in enumerate(beginnings):  # colour and pattern of both
        # With scores of the end that rise along colours and patterns alike, discs in the same order can be told apart.
        early[i, [first, second]] = (second - first) * (one + other) / 2 if one < other else 1e2, 0

    def share_right(early: np.ndarray, late: np.ndarray) -> float:
        scores = [early[beginnings.index(tuple(sorted(discs)))] + late[discs[0][1]] for discs in places]
        return np.mean([np.argmax(score) == discs[0][0] for score, discs in zip(scores, places, strict=True)])

    assert share_right(early, late) == 0.75
    tries = [(rng.normal(size=early.shape), rng.normal(size=late.shape)) for _ in range(300)]
    assert max(share_right(*scores) for scores in tries) < 0.75


@pytest.mark.parametrize("gap", [4, 20])
def test_distance_gap_and_distractors_are_as_set(gap):
    question = Question(("red", "blue"), (0, 90))
    shown = (24 - gap) // 2
    for seed in range(20):
        plain = video(question, seed, gap_frames=gap, num_distractors=0, distance=0.4)
        between = plain[shown : 24 - shown]
        assert abs(between - between[0]).max() < 40, "noise alone"
        assert abs(plain[shown - 1] - plain[0]).max() < 40 and abs(plain[-1] - plain[24 - shown]).max() < 40
        background = between.mean(0)
        red = (plain[:shown].mean(0) - background)[..., 0] > 60
        grey = abs(plain[24 - shown :].mean(0) - background).min(2) > 25
        places = [np.argwhere(mask).mean(0) for mask in (red, grey)]
        assert np.hypot(*(places[0] - places[1])) > 0.4 * 64 - 6
    crowded = video(question, gap_frames=gap, num_distractors=5)
    assert abs(crowded[shown] - crowded[shown + EVERY - 1]).max() < 40


def test_each_motion_is_another_one_played_backwards():
    for forward, backward in (("right", "left"), ("down", "up")):
        for seed in range(5):
            pair = (draw_short_range(d, np.random.default_rng(seed), **SHAPE) for d in (forward, backward))
            a, b = (frames.astype(float) for frames in pair)
            phases = []  # of the motions: where one played backwards is the other
            for phase in range(EVERY):
                starts = range(phase, 24 - EVERY + 1, EVERY)
                pairs = [(first + t, first + EVERY - 1 - t) for first in starts for t in range(EVERY)]
                if max(abs(a[t] - b[back]).max() for t, back in pairs) < 40:  # noise alone
                    phases.append(phase)
            assert len(phases) == 1 and abs(a[phases[0]] - b[phases[0]]).max() > 40


def test_when_motions_begin_differs_between_videos():
    """Otherwise the order would show in how the windows of C2D's pools lie over them."""
    phases = set()
    for seed in range(20):
        frames = draw_short_range("right", np.random.default_rng(seed), **SHAPE).astype(float)
        jumps = [np.abs(frames[t + 1] - frames[t]).mean() for t in range(23)]
        phases.add(int(np.argmax([np.mean(jumps[phase::EVERY]) for phase in range(EVERY)])))
    assert phases == set(range(EVERY))


def test_the_sets_are_written_as_videos_and_lists(tmp_path):
    settings = {"num_train": 8, "num_val": 4, "seed": 3} | SHAPE
    write_set("long_range", tmp_path / "l", **settings, gap_frames=12, distance=0.25, num_distractors=1)
    write_set("short_range", tmp_path / "s", **settings)
    write_set("stills", tmp_path / "i", **(settings | {"num_frames": 1}))
    assert (tmp_path / "l/classes.txt").read_text().split() == list(COLORS)
    assert (tmp_path / "s/classes.txt").read_text().split() == list(DIRECTIONS)
    assert len((tmp_path / "i/classes.txt").read_text().splitlines()) == 20
    assert (tmp_path / "l/val.csv").read_text().splitlines()[3] == "val/00003.mp4 3"
    # the other question of the same videos: the angle of the disc at the end
    angles = [ANGLES.index(question.angles[0]) for question in questions(8)]
    lines = [f"train/{i:05d}.mp4 {angle}" for i, angle in enumerate(angles)]
    assert (tmp_path / "l/train_end.csv").read_text().splitlines() == lines
    assert (tmp_path / "l/classes_end.txt").read_text().splitlines()[1] == "90 degrees"
    for folder, frames in (("l", 24), ("s", 24), ("i", 1)):
        with open_video(tmp_path / folder / "train/00000.mp4", "pyav") as opened:
            assert opened.num_frames == frames
    with pytest.raises(ValueError, match="other settings"):
        write_set("long_range", tmp_path / "l", **settings, gap_frames=14, distance=0.25, num_distractors=1)


def test_a_still_shows_its_colour():
    frames = draw_still("red", 0, np.random.default_rng(0), 2, 64).astype(float)
    assert (frames[0] == frames[1]).all() and (frames[0][..., 0] - frames[0][..., 1:].max(-1) > 100).any()
