"""The small parts: which snippets, which crops, which videos of a list, and arrays written row by row."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from feature_cases import write_moving

import nlvideo
from nlvideo.config import extract_checks
from nlvideo.data.decoding.opening import open_video
from nlvideo.features.array_file import IncompleteRows, writing_rows
from nlvideo.features.crops import crop_places, cut_places
from nlvideo.features.names import FoundVideo, ListedVideo, check_array_names, check_names, named
from nlvideo.features.presets import PRESETS
from nlvideo.features.snippets import SnippetPlan, snippets_of
from nlvideo.features.video_list import listed_videos
from nlvideo.runtime.errors import UserError

SHARED = Path(__file__).parents[3] / "shared"


def test_the_choices_of_the_config_are_those_of_the_room():
    assert tuple(PRESETS) == extract_checks.FEATURE_PRESETS


@pytest.mark.parametrize("frames", range(0, 70, 3))
@pytest.mark.parametrize("plan", [SnippetPlan(16, 1, 16), SnippetPlan(4, 3, 2), SnippetPlan(5, 2, 7.5)])
def test_every_whole_snippet_and_no_other(plan, frames):
    expected, number = [], 0
    while int(number * plan.step + 0.5) + (plan.frames - 1) * plan.stride < frames:
        expected.append([int(number * plan.step + 0.5) + k * plan.stride for k in range(plan.frames)])
        number += 1
    assert plan.count(frames) == len(expected)
    assert plan.needed(frames).tolist() == sorted({i for snippet in expected for i in snippet})
    needed = ((i, torch.full((1, 1, 3), i)) for i in plan.needed(frames).tolist())
    assert [snippet[:, 0, 0, 0].tolist() for snippet in snippets_of(needed, plan)] == expected


def test_strides_and_steps_in_seconds(thin, clips):
    def plan(**keys):
        extractor = nlvideo.FeatureExtractor(thin, settings={f"snippet.{key}": value for key, value in keys.items()})
        with extractor.open(clips / "a/one.mp4") as source:  # 25 frames a second
            return extractor.plan(source)

    assert plan(frames=4, stride_seconds=0.12, step_seconds=0.5) == SnippetPlan(4, 3, 12.5)
    assert plan(frames=4, stride_seconds=0.01) == SnippetPlan(4, 1, 4)
    assert plan(frames=4, stride=2) == SnippetPlan(4, 2, 8) and plan() == SnippetPlan(8, 2, 16)


def test_settings_that_say_nothing_of_one_video_are_refused(thin):
    for key, value in {"shard": "1/3", "format": "hdf5", "num_devices": 2, "output": "x"}.items():
        with pytest.raises(UserError, match=f"{key} has no effect in the settings of a FeatureExtractor"):
            nlvideo.FeatureExtractor(thin, settings={key: value})


def test_no_more_frames_are_held_than_a_snippet_spans():
    plan, alive = SnippetPlan(4, 2, 3), []

    def frames():
        for i in plan.needed(200).tolist():
            frame = torch.zeros(1)
            alive.append(weakref.ref(frame))
            yield i, frame
            del frame

    most = 0
    for _ in snippets_of(frames(), plan):
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= plan.span


def test_ten_crops_are_torchvisions_in_the_published_order():
    frame = torch.arange(256 * 340 * 3).reshape(1, 256, 340, 3)
    found = cut_places(frame, crop_places(10, 256, 340, 224))
    left_top, right_top, left_bottom, right_bottom, centre, *mirrored = tv.ten_crop(frame.permute(0, 3, 1, 2), [224])
    expected = [left_top, right_top, centre, left_bottom, right_bottom]
    expected += [mirrored[i] for i in (0, 1, 4, 2, 3)]
    assert all(torch.equal(a, b.permute(0, 2, 3, 1)) for a, b in zip(found, expected, strict=True))
    five = cut_places(frame, crop_places(5, 256, 340, 224))
    assert all(torch.equal(a, b) for a, b in zip(found[:5], five, strict=True))


def test_one_and_three_crops_are_those_of_the_evaluation():
    assert [place[:2] for place in crop_places(3, 256, 340, 256)] == [(0, 0), (0, 42), (0, 84)]
    assert [place[:2] for place in crop_places(3, 340, 256, 256)] == [(0, 0), (42, 0), (84, 0)]
    assert [place[:4] for place in crop_places(1, 256, 340, 224)] == [(16, 58, 224, 224)]
    assert [place[:4] for place in crop_places("full", 256, 340, None)] == [(0, 0, 256, 340)]


def test_whole_frames_are_those_that_reading_gives(tmp_path):
    path = write_moving(tmp_path / "video.mp4", 30)
    wanted = np.array([0, 3, 4, 11, 29])
    with open_video(path) as video:
        frames = torch.stack([frame.clone() for frame in video.whole_frames(wanted)])
        assert torch.equal(frames, video.read(wanted, (video.height, video.width)))


def names(videos: object, root: object = None) -> list[tuple]:
    found, _ = listed_videos(str(videos), None if root is None else str(root))
    return [(video.name, video.part) for video in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/one.mp4\na/two words.mp4\n", ["a/one", "a/two words"]),
        ("path\na/one.mp4\n", ["a/one"]),
        ("a/one.mp4 0\na/two words.mp4 1\n", ["a/one", "a/two words"]),
        ("one.mp4  Abuse  165  240  -1  -1  \n", ["one"]),  # UCF-Crime's test list
        ("one 125 342\na/two words 1 20 33 40\n", ["one", "a/two words"]),  # XD-Violence's, without endings
        ("a/one.mp4,fight\na/one.mkv,fight\n", ["a/one.mp4", "a/one.mkv"]),  # one name for two
        ("video,fold,label\na/one.mp4,3,x\n", ["a/one"]),
        ("../elsewhere/one.mp4\n", ["elsewhere/one"]),
        ("a/one.mp4\n./a/one.mp4\n", ["a/one"]),  # one file, listed twice
        ("video labels\na/two words.mp4 1;3\n", ["a/two words"]),
    ],
)
def test_lists_with_and_without_labels(tmp_path, text, expected):
    for name in ("a/one.mp4", "a/two words.mp4", "a/one.mkv", "one.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "elsewhere/one.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text(text)
    root = tmp_path / "lists" if text.startswith("..") else None
    assert [name for name, _ in names(tmp_path / "list.txt", root)] == expected


def test_what_a_list_leaves_out_and_advises(tmp_path):
    (tmp_path / "one.mp4").touch()
    (tmp_path / "list.txt").write_text("#one.mp4\n# mine\none.mp4\n")
    assert listed_videos(str(tmp_path / "list.txt"))[1] == (
        "1 video of list.txt; 2 comments left out (lines with # in front)"
    )
    for place, advised in ((f"{tmp_path}/gone.mp4", False), ("gone.mp4", True)):
        (tmp_path / "list.txt").write_text(place)
        with pytest.raises(UserError, match="none of its 1 videos exists") as raised:
            names(tmp_path / "list.txt")
        assert ("Check data.root" in str(raised.value)) == advised


def test_parts_of_videos_are_named_with_their_seconds(tmp_path):
    (tmp_path / "long.mp4").write_bytes(b"")
    (tmp_path / "list.csv").write_text("path,start,end,label\nlong.mp4,3.5,9,x\nlong.mp4,,,y\nlong.mp4,3.5,9,z\n")
    assert names(tmp_path / "list.csv") == [("long#3.5-9", (3.5, 9.0)), ("long", None)]


def names_of(*paths: str) -> list[str]:
    return [video.name for video in named([FoundVideo(f"/videos/{path}", path) for path in paths])]


def test_endings_stay_where_names_would_meet():
    assert names_of("a.mp4", "a.avi", "a.mp4.mkv", "A.mov") == ["a.mp4", "a.avi", "a.mp4.mkv", "A.mov"]
    assert names_of("a.mp4", "b.mp4", "extraction.mp4") == ["a", "b", "extraction.mp4"]
    assert names_of("c/a.mp4", "c/./a.mp4", "../videos/c/a.mp4"[3:]) == ["c/a", "videos/c/a"]
    parts = [FoundVideo("a.mp4", "a.mp4", part) for part in ((1.0, 2.5), (1.00000000001, 2.5), (1.0, 2.5))]
    assert [video.name for video in named(parts)] == ["a#1-2.5", "a#1.00000000001-2.5"]


def test_videos_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"/videos/c/a.mp4 and /videos/../c/a.mp4 would both be kept as c/a.mp4"):
        names_of("c/a.mp4", "../c/a.mp4")
    for first, second, file in (
        ("a", "A", "A.json"),
        ("x", "x.scores", "x.scores.npy"),
        ("x", "x.npy/k", "x.npy"),
        ("\u00e9", "e\u0301", "e\u0301.json"),
    ):
        videos = [ListedVideo(f"{first}.mp4", first), ListedVideo(f"{second}.mp4", second)]
        with pytest.raises(UserError, match=f"would both be kept as {file}"):
            check_names(videos, ("", ".scores"))
    check_names([ListedVideo("x.mp4", "x"), ListedVideo("y.mp4", "x.scores")], ("",))
    with pytest.raises(UserError, match=r"extraction.json says what made the folder"):
        check_names([ListedVideo("d/Extraction", "Extraction")], ("",))


def test_one_video_and_a_folder(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one.mp4").write_bytes(b"")
    assert names(tmp_path / "a/b/one.mp4") == [("one", None)] and names(tmp_path) == [("a/b/one", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no video"),
        ("nowhere.mp4\n", "none of its 1 videos exists; the first would be"),
        ("words of no kind\n", "line 1: 'words of no kind' names no video"),
        ("path,start,end\na.mp4,0.5,\n", "line 2: '' is not a number of seconds"),
        ("path,start\na.mp4,0.5\n", "line 1: the columns path, start have only one of a start and an end"),
        ('a.mp4 0\n"b.mp4 1\n', "line 2: .* has a quote that is never closed"),
        ("s3://bucket/one.mp4\n", "names videos in stores: nlvideo-extract reads files of this machine"),
    ],
)
def test_lists_that_name_nothing(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        names(tmp_path / "list.txt")


def test_an_array_is_whole_or_not_there(tmp_path):
    rows = np.random.default_rng(0).random((5, 2, 3)).astype(np.float16)
    with writing_rows(tmp_path / "a.npy", 5) as file:
        for row in rows:
            file.append(row)
    assert np.array_equal(np.load(tmp_path / "a.npy"), rows)
    with pytest.raises(IncompleteRows), writing_rows(tmp_path / "b.npy", 5) as file:
        file.append(rows[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.skipif(not (SHARED / "cases/lists").is_dir(), reason="needs lists of others, ../shared/cases")
def test_lists_of_others(tmp_path):
    for file in sorted((SHARED / "cases/lists").iterdir()):
        with pytest.raises(UserError, match="none of its"):  # the videos are made up, the lines are read
            names(file)


@pytest.mark.parametrize(
    ("names", "file_format", "message"),
    [
        (["a", "a/b"], "hdf5", "a is a video and a folder of others"),
        (["caf\udce9"], "hdf5", "is no valid text"),
        (["caf\udce9"], "safetensors", r"caf\\udce9 is no valid text"),
        (["__metadata__"], "safetensors", "is the name of something else there"),
    ],
)
def test_names_that_a_file_cannot_hold(names, file_format, message):
    check_array_names(["a", "a b", "é"], file_format)
    with pytest.raises(UserError, match=message):
        check_array_names(names, file_format)
