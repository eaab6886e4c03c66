"""A folder of features that is gone on with: after a kill at any moment, with other videos, beside other processes."""

import importlib.util
import json
import multiprocessing
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feature_cases import SMALL, write_moving
from PIL import Image
from safetensors.numpy import load_file

from nlvideo.features.extraction import extract
from nlvideo.features.extractor import FeatureExtractor
from nlvideo.features.names import ListedVideo
from nlvideo.features.presets import extract_settings
from nlvideo.features.shard_lock import shard_lock
from nlvideo.features.single_file import read_single, write_single
from nlvideo.features.video_state import description_of, difference
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError
from nlvideo.weights.trained_network import read_trained

CHANGES = ["replace", "unlink", "mkdir"]  # of pathlib; with os.rmdir, all by which names come and go


class Killed(BaseException):
    """As SIGKILL: nothing is written or removed after it."""


@pytest.fixture
def run(thin, monkeypatch, capsys):
    """Returns a function that extracts in this process with one network for all, and returns what it printed."""
    trained, prepared = read_trained(thin), {}

    def prepare(config, *_):
        if config.layer not in prepared:
            made = FeatureExtractor.__new__(FeatureExtractor)
            made._prepare(config, trained, "cpu")
            prepared[config.layer] = made
        return prepared[config.layer]

    monkeypatch.setattr(FeatureExtractor, "from_config", prepare)

    def extract_all(videos: Path, output: Path, **keys) -> str:
        if keys.get("format") == "hdf5":
            pytest.importorskip("h5py", reason="h5py is an extra")
        small = {key: int(value) for key, value in (item.split("=") for item in SMALL)}
        given = small | {"checkpoint": str(thin), "videos": str(videos), "output": str(output), "num_threads": 1}
        extract(extract_settings(trained.config, given | keys), trained)
        return capsys.readouterr().out

    return extract_all


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A folder of two videos of one and two snippets."""
    folder = tmp_path_factory.mktemp("pair")
    write_moving(folder / "a/one.mp4", 5)
    write_moving(folder / "two.mp4", 8)
    return folder


def arrays_of_hdf5(file: Path) -> dict[str, object]:
    import h5py

    found: dict[str, object] = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda key, item: found.update({key: item[:].tobytes()}) if hasattr(item, "shape") else None)
    return found


def content_of(folder: Path) -> dict[str, object]:
    """Returns what is in a folder, apart from the locks; of an HDF5 file, whose free places differ, its arrays."""
    found: dict[str, object] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name):
        name = str(file.relative_to(folder))
        if file.suffix == ".h5":
            found |= arrays_of_hdf5(file)
        else:
            found[name] = file.read_bytes()
    return found


def killed_after(patched: pytest.MonkeyPatch, count: int) -> list[str]:
    """Makes the change after so many the last; returns a list that says which changes there were."""
    done: list[str] = []

    def counted(name, original):
        def change(*arguments, **options):
            if len(done) >= count:
                raise Killed
            done.append(name)
            return original(*arguments, **options)

        return change

    for name in CHANGES:
        patched.setattr(Path, name, counted(name, getattr(Path, name)))
    patched.setattr(os, "rmdir", counted("rmdir", os.rmdir))
    return done


@pytest.mark.parametrize(
    "keys", [{}, {"layer": "head"}, {"format": "safetensors"}, {"format": "hdf5", "layer": "head"}], ids=str
)
def test_a_kill_at_any_moment_leaves_what_the_same_command_goes_on_with(run, pair, tmp_path, keys):
    with pytest.MonkeyPatch.context() as patched:
        changes = killed_after(patched, 1000)
        run(pair, tmp_path / "undisturbed", **keys)
    wanted = content_of(tmp_path / "undisturbed")
    assert len(changes) > 8 and "replace" in changes
    for count in range(len(changes)):
        output = tmp_path / str(count)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            killed_after(patched, count)
            run(pair, output, **keys)
        run(pair, output, **keys)
        assert content_of(output) == wanted, f"killed after {changes[:count]}"
        shutil.rmtree(output)


def test_a_killed_growth_of_a_single_file(run, pair, tmp_path):
    """As above, where the file holds one of the videos already."""
    keys = {"format": "safetensors"}
    run(pair / "a", tmp_path / "first", **keys)  # kept as `one`
    with pytest.MonkeyPatch.context() as patched:
        changes = killed_after(patched, 1000)
        shutil.copytree(tmp_path / "first", tmp_path / "undisturbed")
        changes.clear()
        run(pair / "two.mp4", tmp_path / "undisturbed", **keys)
    wanted = content_of(tmp_path / "undisturbed")
    for count in range(len(changes)):
        output = tmp_path / str(count)
        shutil.copytree(tmp_path / "first", output)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            killed_after(patched, count)
            run(pair / "two.mp4", output, **keys)
        run(pair / "two.mp4", output, **keys)
        assert content_of(output) == wanted, f"killed after {changes[:count]}"
    assert sorted(load_file(tmp_path / "undisturbed/features.safetensors")) == ["one", "two"]


@pytest.mark.parametrize("file_format", ["npy", "safetensors"])
def test_another_video_of_the_same_name_is_refused(run, clips, pair, tmp_path, file_format):
    shutil.copytree(pair, tmp_path / "videos")
    run(tmp_path / "videos/two.mp4", tmp_path / "out", format=file_format)
    before = content_of(tmp_path / "out")
    (tmp_path / "other").mkdir()
    shutil.copy(clips / "a/two.mp4", tmp_path / "other/two.mp4")
    with pytest.raises(UserFileExistsError, match=r"holds two of another video or .* size is \d+, now"):
        run(tmp_path / "other/two.mp4", tmp_path / "out", format=file_format)
    shutil.copy(clips / "a/two.mp4", tmp_path / "videos/two.mp4")
    with pytest.raises(UserFileExistsError, match=r"two of another video or another state of it .* size is"):
        run(tmp_path / "videos/two.mp4", tmp_path / "out", format=file_format)
    (tmp_path / "videos/two.mp4").unlink()  # done with
    (tmp_path / "list.txt").write_text(f"two.mp4\n{pair}/a/one.mp4\n")
    assert "resumed: 1 of 2" in run(
        tmp_path / "list.txt", tmp_path / "out", **{"data.root": str(tmp_path / "videos")} | {"format": file_format}
    )
    assert before.keys() <= content_of(tmp_path / "out").keys()


def test_a_video_that_moved_is_the_same_and_one_of_other_bytes_is_not(tmp_path):
    file, moved = tmp_path / "a.mp4", tmp_path / "b.mp4"
    file.write_bytes(b"0" * 2**22)
    facts = description_of(ListedVideo(str(file), "a"))
    shutil.copyfile(file, moved)
    os.utime(moved, ns=(1, 1))
    (tmp_path / "link.mp4").symlink_to(moved)
    for path in (file, moved, tmp_path / "link.mp4", tmp_path / "gone.mp4"):
        assert difference(facts, ListedVideo(str(path), "a")) is None
    assert difference(facts, ListedVideo(str(file), "a", (0.0, 1.0))) == "part is None, now [0.0, 1.0]"
    for place in (0, 2**22 - 1):
        with open(moved, "r+b") as opened:
            opened.seek(place)
            opened.write(b"1")
        assert (
            difference(facts, ListedVideo(str(moved), "a")) == f"the content of {moved} is another than that of {file}"
        )
        shutil.copyfile(file, moved)


def test_folders_of_frames_are_known_by_the_names_and_sizes_of_their_pictures(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / f"a/{i}.jpg").write_bytes(b"0" * 10)
    facts = description_of(ListedVideo(str(tmp_path / "a"), "a"))
    assert facts["size"] == 30
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    video = ListedVideo(str(tmp_path / "b"), "a")
    (tmp_path / "b/Thumbs.db").touch()
    assert difference(facts, video) is None
    (tmp_path / "b/0.jpg").write_bytes(b"0" * 9)
    assert difference(facts, video) == "size is 30, now 29"
    (tmp_path / "b/1.jpg").write_bytes(b"0" * 11)
    assert "is another than that of" in difference(facts, video)


def test_many_failures_are_told_in_their_file(run, pair, tmp_path, capsys):
    names = [f"gone{i:02}.mp4" for i in range(30)]
    (tmp_path / "list.txt").write_text("\n".join([*names, f"{pair}/two.mp4"]))
    with pytest.raises(RunFailed, match="30 of 31 videos failed"):
        run(tmp_path / "list.txt", tmp_path / "out")
    shown = capsys.readouterr().err
    assert shown.count("No such file") == 10 and f"More videos failed; {tmp_path}/out/failed.csv" in shown
    assert (tmp_path / "out/failed.csv").read_text().count("No such file") == 30


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_no_video(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(RunFailed, match="1 of 1 videos failed"):
        run(tmp_path, tmp_path / "out")
    assert "it is neither a file nor a folder" in (tmp_path / "out/failed.csv").read_text()


def test_an_array_that_is_missing_is_made_again(run, pair, tmp_path):
    run(pair, tmp_path / "out", layer="head")
    before = content_of(tmp_path / "out")
    (tmp_path / "out/two.scores.npy").unlink()
    assert "resumed: 1 of 2" in run(pair, tmp_path / "out", layer="head")
    assert content_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a/one.npy", b"mine", {}),
        ("two.json", b'{"annotation": 1}', {}),
        ("two.scores.npy", b"mine", {"layer": "head"}),
        ("extraction.json", b"[1]", {}),
        ("extraction.json", b"\xff", {"format": "hdf5"}),
        ("features.json", b"{}", {"format": "safetensors"}),
        ("features.safetensors", b"mine", {"format": "safetensors"}),
        ("failed.csv", b"path,reason\n", {}),
        ("features.h5", b"mine", {"format": "hdf5"}),
        pytest.param("extraction.json", b"[" * 200_000, {}, id="nested"),
        pytest.param(
            *("features.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000, {"format": "safetensors"}),
            id="nested header",
        ),
    ],
)
@pytest.mark.parametrize("begun", [False, True], ids=["new folder", "ours"])
def test_what_something_else_made_is_not_overwritten(run, pair, tmp_path, name, content, keys, begun):
    if begun and name != "extraction.json":
        write_moving(tmp_path / "other.mp4", 4)
        run(tmp_path / "other.mp4", tmp_path / "out", **keys)
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(UserFileExistsError, match=f"{name} exists, and .* nothing is overwritten"):
        run(pair, tmp_path / "out", **keys)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert {path: after[path] for path in after if ".lock" not in path.name} == {
        path: before[path] for path in before if ".lock" not in path.name
    }


@pytest.mark.parametrize("kind", ["external", "soft", "second name"])
def test_an_hdf5_file_whose_names_lead_elsewhere_is_not_written(tmp_path, kind):
    h5py = pytest.importorskip("h5py", reason="h5py is an extra")
    file, other = tmp_path / "features.h5", tmp_path / "other.h5"
    with h5py.File(file, "w") as made, h5py.File(other, "w") as victim:
        victim.create_group("g")
        made.attrs["made_by"] = "{}"
        made["b/x"] = [1.0]
    assert read_single(file, "hdf5") == ({}, {"b/x"})
    with h5py.File(file, "a") as made:
        links = {"external": h5py.ExternalLink(str(other), "/g"), "soft": h5py.SoftLink("/b"), "second name": made["b"]}
        made["a"] = links[kind]
    with pytest.raises(UserFileExistsError, match="is no hdf5 file of nlvideo-extract; nothing is overwritten"):
        read_single(file, "hdf5")


def test_one_video_stops_no_other(run, pair, tmp_path, monkeypatch):
    """One whose name is too long for its array, one whose features are not finite, one with a file in its way, one
    whose frames become too wide, and one for which there is no memory."""
    monkeypatch.setattr("nlvideo.features.extractor.MOST_PIXELS", 2**20)
    shutil.copytree(pair, tmp_path / "videos")
    (tmp_path / "videos/flat").mkdir()
    for number in range(4):
        Image.new("RGB", (60_000, 1)).save(tmp_path / f"videos/flat/{number}.png")
    for name in ("n" * 245, "way/in", "infinite", "greedy"):
        write_moving(tmp_path / f"videos/{name}.mp4", 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/way").write_bytes(b"")
    outputs = FeatureExtractor.outputs
    opened = FeatureExtractor.open

    def open_video(self, video, part=None):
        self.scale = 1e30 if "infinite" in str(video) else 1
        if "greedy" in str(video):
            torch.empty(2**60)
        return opened(self, video, part)

    monkeypatch.setattr(FeatureExtractor, "open", open_video)
    monkeypatch.setattr(FeatureExtractor, "outputs", lambda self, clips: [v * self.scale for v in outputs(self, clips)])
    with pytest.raises(RunFailed, match="5 of 7 videos failed"):
        run(tmp_path / "videos", tmp_path / "out", dtype="float16")
    reasons = (tmp_path / "out/failed.csv").read_text()
    for reason in (
        "File name too long",
        "not finite in float16",
        "out/way: ",
        "60000x1 become 1920000x32",
        "memory for",
    ):
        assert reason in reasons
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 2


def test_a_single_file_without_a_video_and_with_parts_of_others(run, pair, tmp_path, capsys):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    with pytest.raises(RunFailed, match="1 of 1 videos failed"):
        run(tmp_path / "junk.mp4", tmp_path / "out", format="hdf5")
    assert f"{tmp_path}/out holds features of 0 of 1" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nlvideo.features.extraction.end_extraction", lambda *_: None)  # as when it is stopped
        run(pair / "two.mp4", tmp_path / "out", format="hdf5")
    run(pair / "a/one.mp4", tmp_path / "out", format="hdf5")
    assert (tmp_path / "out/unfinished/two.npy").exists()
    (tmp_path / "two").mkdir()
    shutil.copy(pair / "two.mp4", tmp_path / "two/x.mp4")
    assert "resumed: 1 of 1" in run(pair / "two.mp4", tmp_path / "out", format="hdf5")
    assert not (tmp_path / "out/unfinished").exists()
    (tmp_path / "list.txt").write_text("two/x.mp4\n")
    with pytest.raises(UserError, match="two is a video and a folder of others"):
        run(tmp_path / "list.txt", tmp_path / "out", format="hdf5")


@pytest.fixture
def limited():
    """Returns a function that sets a limit of this process, until the test ends."""
    resource = pytest.importorskip("resource", reason="limits of Unix")
    before = {}

    def limit(name: str, value: int) -> None:
        kind = getattr(resource, name)
        before[kind] = resource.getrlimit(kind)
        resource.setrlimit(kind, (value, before[kind][1]))

    yield limit
    for kind, limits in before.items():
        resource.setrlimit(kind, limits)


def test_more_arrays_than_files_may_be_open(tmp_path, limited):
    np.save(tmp_path / "part.npy", np.arange(6, dtype=np.float16).reshape(2, 1, 3))
    limited("RLIMIT_NOFILE", 256)
    for names in (range(300), range(250, 600)):  # the second time, the file grows
        parts = {str(i): tmp_path / "part.npy" for i in names}
        write_single(tmp_path / "all.safetensors", "safetensors", parts, {"a": 1})
    found = load_file(tmp_path / "all.safetensors")
    assert len(found) == 600 and all(np.array_equal(a, np.load(tmp_path / "part.npy")) for a in found.values())


def test_a_disk_that_is_full_when_the_single_file_is_written(tmp_path, limited, monkeypatch):
    np.save(tmp_path / "part.npy", np.zeros((100, 1, 50), np.float32))
    parts = {str(i): tmp_path / "part.npy" for i in range(2)}
    with monkeypatch.context() as patched:
        usage = SimpleNamespace(free=40_000)
        patched.setattr(shutil, "disk_usage", lambda folder: usage)
        if importlib.util.find_spec("h5py"):
            with pytest.raises(OSError, match="No space left on device"):
                write_single(tmp_path / "all.h5", "hdf5", parts, {})
    limited("RLIMIT_FSIZE", 30_000)
    with pytest.raises(OSError, match="File too large"):
        write_single(tmp_path / "all.safetensors", "safetensors", parts, {})
    assert [path.name for path in tmp_path.iterdir()] == ["part.npy"]


def _hold(folder: Path, shard: str | None, connection) -> None:
    with shard_lock(folder, shard, lambda: None):
        connection.send("held")
        connection.recv()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no shared locks")
def test_a_whole_command_and_shards_of_one_number_exclude_each_other(tmp_path):
    def enters(shard: str | None) -> bool:
        with ExitStack() as stack:
            stack.enter_context(shard_lock(tmp_path, shard, lambda: None))
            return True

    context = multiprocessing.get_context("fork")
    for held, free, refused in (("1/2", ["2/2"], [None, "1/2", "1/3", "2/20"]), (None, [], [None])):
        here, there = context.Pipe()
        holder = context.Process(target=_hold, args=(tmp_path, held, there))
        holder.start()
        assert here.recv() == "held"
        assert all(enters(shard) for shard in free)
        for shard in refused:
            with pytest.raises(UserFileExistsError, match=f"output={tmp_path} is in use by"):
                enters(shard)
        here.send("leave")
        holder.join()
        assert enters(None) and enters("1/3")


def test_facts_of_a_video_name_it(run, pair, tmp_path):
    run(pair, tmp_path / "out")
    facts, status = json.loads((tmp_path / "out/two.json").read_text()), (pair / "two.mp4").stat()
    assert [facts[key] for key in ("video", "part", "size", "mtime_ns")] == [
        f"{pair}/two.mp4",
        None,
        status.st_size,
        status.st_mtime_ns,
    ]
