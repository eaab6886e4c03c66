"""The tools that go over whole collections: check_videos, prepare_videos, show_samples, benchmark_loader."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from conftest import frame_numbers, write_grey_video
from in_process import TOOLS, run_tool
from PIL import Image

from nlvideo.data.collections.records import Records, read_records
from nlvideo.data.collections.worker_pool import each, items_of_part, part_of_job
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.index.video_index import INDEX_FILE, VideoIndex
from nlvideo.data.lists.path_list import read_table
from nlvideo.runtime.errors import UserError


def run_process(tool, *arguments, code=0):
    done = subprocess.run([sys.executable, TOOLS / f"{tool}.py", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs a tool in this process; the tool's workers are processes all the same."""

    def call(tool, *arguments, code=0):
        done = run_tool(f"{tool}.py", *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


def rows_of(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Six videos of two classes, the third damaged in its middle, the fifth no video, and a list of them."""
    folder = tmp_path_factory.mktemp("collection")
    for i in range(6):
        write_grey_video(folder / f"class {i % 2}" / f"v {i}.mp4", 40, height=96, width=128, g="10", bf="0")
    damaged = folder / "class 0/v 2.mp4"
    data = bytearray(damaged.read_bytes())
    with av.open(str(damaged)) as container:
        second = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe][1]
    data[second + 10 : second + 60] = bytes(50)
    damaged.write_bytes(data)
    (folder / "class 0/v 4.mp4").write_text("no video")
    (folder / "train.csv").write_text("".join(f"class {i % 2}/v {i}.mp4 {i % 2}\n" for i in range(6)))
    return folder


def test_check_videos_names_the_damaged_and_writes_a_clean_list(collection, tmp_path):
    text = run_process("check_videos", collection, tmp_path / "out", "--list", "train.csv", code=1)
    rows = {row["video"]: row for row in rows_of(tmp_path / "out/videos.csv")}
    assert {name for name, row in rows.items() if row["problem"]} == {"class 0/v 2.mp4", "class 0/v 4.mp4"}
    whole = rows["class 1/v 1.mp4"]
    assert (whole["codec"], whole["frames"], whole["fps"], whole["largest_gap"]) == ("h264", "40", "25.0", "10")
    assert (whole["height"], whole["width"], whole["keyframes"]) == ("96", "128", "4")
    clean = read_table(str(collection), str(tmp_path / "out/train.csv"), None)
    assert [clean.name(i) for i in range(4)] == [f"class {i % 2}/v {i}.mp4" for i in (0, 1, 3, 5)]
    assert clean.targets.tolist() == [0, 1, 1, 1]
    assert "6 videos, 2 damaged" in text and "class 0/v 4.mp4: Invalid data" in text
    index = VideoIndex(collection / INDEX_FILE, grows=False)
    facts = {name: index.find(index.state(collection / name)) for name in rows}
    assert {name for name, known in facts.items() if known is None} == {"class 0/v 2.mp4", "class 0/v 4.mp4"}
    assert facts["class 1/v 1.mp4"].num_frames == 40


def test_check_videos_replaces_no_list_by_an_index(run, collection, tmp_path):
    file = collection / "train.csv"
    before = file.read_bytes()
    text = run("check_videos", collection, tmp_path / "out", "--index", file, "--sample", "1", code=1)
    assert f"--index {file}: this file is no index of videos" in text and file.read_bytes() == before


def test_check_videos_in_shards_is_joined_and_not_done_twice(run, collection, tmp_path):
    for i in (1, 2):
        run("check_videos", collection, tmp_path, "--shard", f"{i}/2", "--sample", "3", code=1)
    before = {row["video"] for i in (1, 2) for row in rows_of(tmp_path / f"videos.{i}-of-2.csv")}
    assert len(before) == 6
    text = run("check_videos", collection, tmp_path, "--sample", "3", code=1)
    assert len(rows_of(tmp_path / "videos.csv")) == 6 and "100%" in text


def test_prepare_videos_makes_small_seekable_copies(run, tmp_path):
    source = tmp_path / "source"
    write_grey_video(source / "a/long name.avi", 50, height=300, width=400, codec="mpeg4", **{"q:v": "2"})
    write_grey_video(source / "a/small.mkv", 30, height=48, width=64)
    (source / "b").mkdir()
    (source / "b/broken.mp4").write_text("no video")
    (source / "train.txt").write_text("a/long name.avi 3\nb/broken.mp4 1\na/small.mkv 0\n")
    text = run("prepare_videos", source, tmp_path / "made", "--list", "train.txt", code=1)
    assert "b/broken.mp4: Invalid data" in text
    assert rows_of(tmp_path / "made/failed.csv")[0]["video"] == "b/broken.mp4"
    table = read_table(str(tmp_path / "made"), "train.txt", None)
    assert [table.name(i) for i in range(len(table))] == ["a/long name.mp4", "a/small.mp4"]
    assert table.targets.tolist() == [3, 0]
    with open_video(table.path(0)) as video:
        assert (video.num_frames, video.height, video.width) == (50, 256, 342) and video.largest_gap <= 24
        numbers = frame_numbers(video.read([0, 20, 49], (256, 342)))
        assert np.abs(np.array(numbers) - [0, 20, 49]).max() <= 1  # MPEG-4 and its colours lose a level
    with open_video(table.path(1)) as video:
        assert (video.num_frames, video.height, video.width) == (30, 48, 64)  # never enlarged
        assert frame_numbers(video.read([0, 7, 29], (48, 64))) == [0, 7, 29]
    with av.open(table.path(0)) as container:
        assert not container.streams.audio


@pytest.mark.nightly
def test_prepare_videos_goes_on_after_a_kill(run, tmp_path):
    for i in range(8):
        write_grey_video(tmp_path / f"source/{i}.mp4", 80, height=256, width=320)
    command = [sys.executable, TOOLS / "prepare_videos.py", tmp_path / "source", tmp_path / "made", "--workers", "1"]
    records = tmp_path / "made/prepared.csv"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not records.exists() or len(records.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("[0-9]*.mp4")}
    noted = {row["prepared"] for row in rows_of(records)}
    run("prepare_videos", tmp_path / "source", tmp_path / "made", "--workers", "1")
    assert sorted(path.name for path in (tmp_path / "made").glob("[0-9]*.mp4")) == [f"{i}.mp4" for i in range(8)]
    assert all((tmp_path / "made" / name).stat().st_mtime_ns == made[name] for name in noted)
    assert {row["prepared"] for row in rows_of(records)} == {f"{i}.mp4" for i in range(8)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SRC", "SRC/inside"], "must not be SRC or lie in it"),
        (["SRC", "OUT", "--shard", "3/2"], "give i/n with 1 <= i <= n"),
        (["SRC", "OUT", "--shard", "²/2"], "give i/n with 1 <= i <= n"),
        (["SRC/nothing", "OUT"], "does not exist"),
        (["SRC/train.csv", "OUT"], "SRC .*train.csv is a file; give the folder that it is in"),
        (["SRC", "OUT", "--list", "no.csv"], "The list .*no.csv does not exist"),
    ],
)
def test_prepare_videos_refuses_at_the_door(run, collection, tmp_path, arguments, message):
    import re

    arguments = [a.replace("SRC", str(collection)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    assert re.search(message, run("prepare_videos", *arguments, code=1))


def test_show_samples_draws_any_sample(run, video_folder, tmp_path):
    settings = ["data=list", f"data.root={video_folder}", "data.num_frames=4", "data.frame_stride=2"]
    settings += ["data.scale_range=[48,60]", "data.crop_size=40", "data.test.short_side=48", "data.test.crop_size=48"]
    run_process("show_samples", tmp_path / "a.png", *settings, "--samples", "0:0", "3:5", "--frames", "4")
    run("show_samples", tmp_path / "b.png", "--samples", "0:0", "3:5", *settings, "--frames", "4")
    a, b = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert a.shape[0] > 300 and np.array_equal(a, b)
    augmented = ["data.augment=colour", "data.erasing=0.5", "data.crop=random_resized"]
    run("show_samples", tmp_path / "d.svg", "--samples", "2:4", *settings, *augmented)
    caption = (tmp_path / "d.svg").read_text().split("epoch 2, index 4: train/a video 4.mp4")[1]
    assert "of 64x48, resized to 40x40" in caption and ", colour 0.4, erasing 0.5" in caption
    run("show_samples", tmp_path / "e.svg", "--samples", "2:4", *settings, "data.clips_per_video=2")
    pages = (tmp_path / "e.svg").read_text()
    assert all(f"epoch 2, index 4, clip {clip}: train/a video 4.mp4" in pages for clip in (0, 1))
    assert "give EPOCH:INDEX with an index below 6" in run(
        "show_samples", tmp_path / "c.png", *settings, "--samples", "0:6", code=1
    )


@pytest.mark.nightly
def test_benchmark_loader_gives_its_figures(tmp_path):
    write_grey_video(tmp_path / "videos/a.mp4", 80, height=256, width=340, g="40", bf="2")
    file = tmp_path / "figures.json"
    text = run_process(
        "benchmark_loader", tmp_path / "videos", "--json", file, "--rounds", "1", "--steps-per-second", "2"
    )
    figures = json.loads(file.read_text())
    keys = "train_clip_over_reference prepared_over_original eval_video_over_reference eval_video_peak_MB"
    keys += " two_clips_over_one four_clips_over_one prepared_two_clips_over_one prepared_four_clips_over_one"
    for key in [*keys.split(), "shard_over_files"]:
        assert figures[key] > 0
    assert "2 steps/s of 64 clips need" in text


def work(item):
    if item == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hangs":
        time.sleep(60)
    if item == "raises":
        raise ValueError("no good")
    return item * 2


def test_each_gives_every_item_its_outcome_whatever_happens():
    items = ["a", "dies", "b", "hangs", "raises", "c"]
    found = {outcome.item: outcome[1:] for outcome in each(work, items, 2, time_limit=3)}
    assert found == {
        **{item: (item * 2, None) for item in "abc"},
        "dies": (None, "its process died with signal 11"),
        "hangs": (None, "took longer than 3 seconds"),
        "raises": (None, "ValueError: no good"),
    }
    assert list(each(work, [], 2)) == []


@pytest.mark.slow
def test_a_killed_program_leaves_no_process_behind():
    body = "for _ in each(str, range(4), 2): print('began', flush=True); input()"
    program = f"from nlvideo.data.collections.worker_pool import each\nif __name__ == '__main__':\n  {body}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == "began\n"
        process.kill()
        process.wait()
        deadline = time.monotonic() + 300
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)  # any process of its group: workers and their server
                time.sleep(0.05)


def test_shards_share_out_everything():
    assert sorted(x for i in (1, 2, 3) for x in items_of_part(range(10), f"{i}/3")) == list(range(10))


@pytest.mark.parametrize("given", ["0/1", "2/1", "1", "1/", "/1", "²/3", "1/1/1", "-1/2", " 1/2", f"1/{'9' * 5000}"])
def test_what_is_no_part_of_a_job_is_refused(given):
    with pytest.raises(UserError, match="give i/n with 1 <= i <= n"):
        part_of_job(given)
    assert [part_of_job(text) for text in ("1/1", "01/1", "1/01", "010/0100")] == ["1/1", "1/1", "1/1", "10/100"]


def test_records_keep_names_with_any_characters(tmp_path):
    names = [f"a{c}b.mp4" for c in "\u2028\u2029\x85\x0b\x0c\x1c\r\n,\"'"] + ["c\r\nd.mp4", os.fsdecode(b"\xe9.mp4")]
    records = Records(tmp_path / "r.csv", ("video", "reason"))
    for i, name in enumerate(names):
        records.add({"video": name, "reason": str(i)})
    for _ in range(2):
        again = Records(tmp_path / "r.csv", ("video", "reason")).rows
        assert again == [{"video": name, "reason": str(i)} for i, name in enumerate(names)]


@pytest.mark.parametrize("does", ["opens", "adds", "syncs"])
def test_records_on_a_full_disk_are_one_line_and_go_on(tmp_path, monkeypatch, does):
    def full(*_):
        raise OSError(28, "No space left on device")

    file, columns = tmp_path / "r.csv", ("video", "reason")
    Records(file, columns).add({"video": "a", "reason": ""})
    records = Records(file, columns)
    with monkeypatch.context() as patched, pytest.raises(UserError) as error:
        patched.setattr(os, "fsync", full)
        if does == "opens":
            Records(file, columns)
        if does == "syncs":
            records.sync()
        patched.setattr(csv.DictWriter, "writerow", full)
        records.add({"video": "b", "reason": ""})
    assert str(error.value).startswith(f"{file} cannot be written (No space left on device). Then the same command")
    again = Records(file, columns)
    again.add({"video": "b", "reason": ""})
    assert [row["video"] for row in Records(file, columns).rows] == ["a", "b"] and len(os.listdir(tmp_path)) == 1


def test_a_torn_line_of_records_is_dropped_and_other_files_are_refused(tmp_path):
    records = Records(tmp_path / "r.csv", ("video", "reason"))
    records.add({"video": "a, b.mp4", "reason": 'with "quotes"\nand lines'})
    records.add({"video": "c.mp4", "reason": ""})
    with open(tmp_path / "r.csv", "a") as file:
        file.write("d.mp4,cut he")
    assert [row["video"] for row in Records(tmp_path / "r.csv", ("video", "reason")).rows] == ["a, b.mp4", "c.mp4"]
    with pytest.raises(ValueError, match="has other columns than video, why"):
        read_records(tmp_path / "r.csv", ("video", "why"))
