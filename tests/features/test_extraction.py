"""nlvideo-extract: what it writes, what it goes on with, and what it refuses."""

import builtins
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from feature_cases import SETTINGS, SMALL, arrays_in, same, write_checkpoint
from safetensors.numpy import load_file

import nlvideo
from nlvideo.data.decoding.opening import open_video
from nlvideo.features import extractor as extractor_module


def test_a_folder_gives_an_array_and_its_times_for_each_video(extract_command, thin, clips, alone, tmp_path):
    done = extract_command(f"checkpoint={thin}", f"videos={clips}", f"output={tmp_path}/out", *SMALL)
    assert done.returncode == 1 and "1 of 4 videos failed" in done.stderr.splitlines()[-1], done.stderr
    found = arrays_in(tmp_path / "out")
    assert same(found, alone) and found["a/one.npy"].shape == (10, 1, 128)
    reason = "it has 3 frames, and features take at least 4"
    rows = ["path,start,end,name,reason", f'{clips}/b/short.mp4,,,b/short,"{reason}"']
    assert (tmp_path / "out/failed.csv").read_text().splitlines() == rows
    done = extract_command(f"checkpoint={thin}", f"videos={tmp_path}/out/failed.csv", f"output={tmp_path}/2", *SMALL)
    assert "1 video of failed.csv" in done.stdout and "1 of 1 videos failed" in done.stderr, done.stderr
    facts = json.loads((tmp_path / "out/a/two.json").read_text())
    assert facts["snippets"]["first_frame"] == [0, 4, 8, 12, 16] and facts["snippets"]["last_frame"][-1] == 19
    assert facts["snippets"]["start"][1] == 0.16 and facts["snippets"]["end"][-1] == 0.8
    assert facts["frames_after_the_last_snippet"] == 2 and facts["shapes"] == {"a/two": [5, 1, 128]}
    assert len(facts["made_by"]["checkpoint_sha256"]) == 64 and facts["made_by"]["versions"]["nlvideo"]


def test_overlapping_snippets_decode_every_frame_once(thin, clips, monkeypatch):
    asked = []
    source_of = extractor_module.source_of

    def counted(video):
        source = source_of(video)

        def read(indices):
            for index, frame in zip(indices.tolist(), source.read(indices), strict=True):
                asked.append(index)
                yield frame

        return source.__class__(*[getattr(source, name) for name in source.__match_args__[:-1]], read)

    monkeypatch.setattr(extractor_module, "source_of", counted)
    settings = SETTINGS | {"snippet.frames": 3, "snippet.stride": 4, "snippet.step": 1}
    features = nlvideo.FeatureExtractor(thin, settings=settings)(clips / "a/two.mp4")
    assert asked == list(range(22)) and len(features) == 22 - 8
    apart = nlvideo.FeatureExtractor(thin, settings=settings | {"snippet.step": 5})(clips / "a/two.mp4")
    np.testing.assert_allclose(features[::5], apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file_format", ["safetensors", "hdf5"])
def test_all_in_one_file(extract_command, thin, whole_videos, clips, alone, tmp_path, file_format):
    if file_format == "hdf5":
        h5py = pytest.importorskip("h5py", reason="h5py is an extra")
    given = [f"checkpoint={thin}", f"data.root={clips}", f"output={tmp_path}/out", f"format={file_format}", *SMALL]
    (tmp_path / "first.txt").write_text("a/one.mp4\n")
    for videos in (tmp_path / "first.txt", whole_videos):  # the second time, the file grows
        done = extract_command(*given, f"videos={videos}")
        assert done.returncode == 0, done.stderr
    assert "resumed: 1 of 3" in done.stdout
    wanted = {name.removesuffix(".npy"): array for name, array in alone.items()}
    if file_format == "safetensors":
        found = load_file(tmp_path / "out/features.safetensors")
    else:
        with h5py.File(tmp_path / "out/features.h5") as opened:
            found = {name: opened[name][:] for name in wanted}
            assert json.loads(opened.attrs["made_by"])["preset"] == "paper"
    assert same(found, wanted)
    facts = json.loads((tmp_path / "out/features.json").read_text())
    assert sorted(facts["videos"]) == sorted(wanted) and facts["videos"]["a/two"]["num_frames"] == 22
    assert not list((tmp_path / "out").glob("unfinished*"))


def test_layers_positions_and_half_precision(thin, clips):
    def shape(**keys):
        array = nlvideo.FeatureExtractor(thin, settings=SETTINGS | keys)(clips / "b/three.mp4")
        return array.shape, array.dtype.name

    assert shape(layer="res4") == ((4, 1, 64), "float32")
    assert shape(positions=True, dtype="float16") == ((4, 1, 1, 1, 1, 128), "float16")
    assert shape(layer="res4", positions=True) == ((4, 1, 1, 2, 2, 64), "float32")
    assert shape(layer="head") == ((4, 1, 5), "float32")
    assert shape(crops=10) == ((4, 10, 128), "float32")
    whole = {key: value for key, value in SETTINGS.items() if key != "crop_size"} | {"crops": "full"}
    array = nlvideo.FeatureExtractor(thin, settings=whole | {"positions": True})(clips / "b/three.mp4")
    assert array.shape == (4, 1, 1, 1, 2, 128)  # 32x43 pixels


def test_what_is_in_memory_has_the_features_of_its_file(thin, clips, alone):
    video, extract = clips / "b/three.mp4", nlvideo.FeatureExtractor(thin, settings=SETTINGS | {"num_threads": 1})
    with open_video(video) as opened:
        frames = torch.stack([frame.clone() for frame in opened.whole_frames(np.arange(opened.num_frames))])
    with open(video, "rb") as file:
        for source in (
            *(nlvideo.Frames(kind, 25) for kind in (frames, frames.numpy(), iter(frames))),
            file,
            file.read(),
        ):
            assert np.array_equal(extract(source), alone["b/three.npy"])


def test_the_head_writes_logits_and_scores(extract_command, thin, clips, tmp_path):
    video = clips / "b/three.mp4"
    done = extract_command(f"checkpoint={thin}", f"videos={video}", f"output={tmp_path}/out", *SMALL, "layer=head")
    assert done.returncode == 0, done.stderr
    logits, scores = (np.load(tmp_path / f"out/{name}.npy") for name in ("three", "three.scores"))
    assert logits.shape == scores.shape == (4, 1, 5)
    exponentials = np.exp(logits - logits.max(2, keepdims=True))
    np.testing.assert_allclose(scores, exponentials / exponentials.sum(2, keepdims=True), rtol=1e-5)


def test_what_is_finished_is_kept_and_what_differs_is_refused(extract_command, thin, whole_videos, clips, tmp_path):
    given = [f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out", *SMALL]
    assert extract_command(f"checkpoint={thin}", *given).returncode == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*")}
    (tmp_path / "out/a/two.npy").unlink()  # as after a kill between the two
    assert "resumed: 2 of 3" in extract_command(f"checkpoint={thin}", *given).stdout
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*")}
    assert {path.name for path in after if after[path] != before[path]} <= {"two.npy", "two.json", ".lock"}
    assert {path: content for path, (_, content) in after.items()} == {p: content for p, (_, content) in before.items()}
    other = write_checkpoint(tmp_path / "other.pt", 2)
    for checkpoint, more, key in ((other, (), "checkpoint_sha256"), (thin, ("crops=5", "crop_size=24"), "crops")):
        kept = [item for item in given if not (more and item.startswith(("crops", "crop_size")))]
        done = extract_command(f"checkpoint={checkpoint}", *kept, *more)
        assert done.returncode == 1 and f"extraction.json: {key} is" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()[-1:]) == 1 and "Traceback" not in done.stderr
    assert after == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*")}


@pytest.mark.slow
def test_two_ranks_give_the_same_bits(thin, whole_videos, clips, alone, tmp_path):
    given = [f"checkpoint={thin}", f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out", *SMALL]
    command = [sys.executable, "-m", "nlvideo.features.command", *given, "num_threads=1", "num_devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(arrays_in(tmp_path / "out"), alone)


def test_shards_give_the_same_bits(extract_command, thin, whole_videos, clips, alone, tmp_path):
    given = [f"checkpoint={thin}", f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out", *SMALL]
    assert extract_command(*given, "shard=2/2").returncode == 0
    assert list(arrays_in(tmp_path / "out")) == ["a/two.npy"]
    assert extract_command(*given, "shard=1/2").returncode == 0
    assert same(arrays_in(tmp_path / "out"), alone)


def test_a_killed_extraction_goes_on_and_equals_one_that_was_left_alone(
    extract_command, thin, whole_videos, clips, alone, tmp_path
):
    """Stopped inside its second video by a signal, which ends it before the next pass through the network."""
    given = [f"checkpoint={thin}", f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out", *SMALL]
    outputs_of, passes = extractor_module.outputs_of, []

    def stopping(*arguments):
        passes.append(1)
        if len(passes) == 7:  # the first video takes five passes of two snippets
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs_of(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extractor_module, "outputs_of", stopping)
        done = extract_command(*given)
    assert done.returncode == 128 + signal.SIGTERM and len(passes) <= 8, done.stderr
    assert "The same command goes on." in done.stdout
    assert list(arrays_in(tmp_path / "out")) == ["a/one.npy"] and not list((tmp_path / "out").rglob("*.part"))
    done = extract_command(*given)
    assert done.returncode == 0 and "resumed: 1 of 3" in done.stdout
    assert same(arrays_in(tmp_path / "out"), alone)


def test_what_a_hard_kill_leaves_is_removed(extract_command, thin, whole_videos, clips, tmp_path):
    given = [f"checkpoint={thin}", f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out", *SMALL]
    (tmp_path / "out/a").mkdir(parents=True)
    for name in ("a/.one.npy", "a/.one.json", ".extraction.json", ".failed.csv", "a/.other.npy"):
        (tmp_path / f"out/{name}.0a1b2c3d.part").write_bytes(b"half")
    assert extract_command(*given).returncode == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.part")] == [
        ".other.npy.0a1b2c3d.part"
    ]  # not of this list
    assert len(arrays_in(tmp_path / "out")) == 3


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_full_disk_ends_in_one_line(extract_command, thin, clips, tmp_path, monkeypatch, at_once):
    import nlvideo.features.array_file as array_file

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() > 3000:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def close(self):
            self.file.close()

    monkeypatch.setattr(array_file, "open", lambda *arguments: Full(builtins.open(*arguments)), raising=False)
    out = tmp_path / "out"
    given = [f"checkpoint={thin}", f"videos={clips}/a", f"output={out}", *SMALL, f"videos_at_once={at_once}"]
    done = extract_command(*given)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: output={out} cannot be written: No space left on device."
    assert not (out / "one.npy").exists() and not list(out.rglob("*.part"))  # the other fits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["preset=rftm"], "preset=rftm: choose from paper, rtfm."),
        (["layer=res6"], "layer=res6: choose from res5, res4, head."),
        (["crops=4"], "crops=4: choose from 1, 3, 5, 10, full."),
        (["format=mat"], "format=mat: choose from npy, hdf5, safetensors."),
        (["dtype=int8"], "dtype=int8: choose from float32, float16."),
        (["shard=5/4"], "shard=5/4: must be I/N"),
        (["snippet.frames=0"], "snippet.frames=0: must be at least 1."),
        (["snippet.frames=1025"], "snippet.frames=1025: must be at most 1024."),
        (["short_side=4097"], "short_side=4097: must be at most 4096."),
        (["snippet.step_seconds=1e-300"], "snippet.step_seconds=1e-300: must be from 0.001 to 86400, or null."),
        (["snippet.stride_seconds=1e300"], "snippet.stride_seconds=1e+300: must be from 0.001 to 86400, or null."),
        (["data.clip_fps=1e9"], "data.clip_fps=1000000000.0: must be above 0 and at most 1000, or null."),
        (["snippet.step=4", "snippet.step_seconds=1"], "say the same in two ways"),
        (["snippet.stride=1", "snippet.stride_seconds=0.04"], "say the same in two ways"),
        (
            ["snippet.frame=4"],
            "Known keys there: frames, stride, stride_seconds, step, step_seconds. Did you mean frames?",
        ),
        (["crops=true"], "crops=True: choose from 1, 3, 5, 10, full."),
        (["num_threads=0"], "num_threads=0: must be at least 1."),
        (["output="], "output has no value; give it as output=PATH"),
        (
            ["short_side=8", "crops=full"],
            "The network cannot take snippets of 8 frames of 8x8 (A 1x1 feature map is too",
        ),
        (["data.num_frames=8"], "data.num_frames has no effect on features."),
        (["preset=rtfm", "short_side=320"], "has no effect on preset=rtfm"),
        (["crop_size=300"], "crop_size=300: must not exceed the frames' short side, 256."),
        (["layer=head", "positions=true"], "positions=true has no effect on layer=head"),
        (["videos=nowhere"], "videos=nowhere does not exist."),
        (["checkpoint=nowhere.pt"], "nowhere.pt"),
        (["output=/dev/null/x"], "output=/dev/null/x: cannot create the folder"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(extract_command, thin, clips, tmp_path, given, message):
    keys = {item.split("=")[0] for item in given}
    usual = [f"checkpoint={thin}", f"videos={clips}", f"output={tmp_path}/out"]
    done = extract_command(*[item for item in usual if item.split("=")[0] not in keys], *given, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 or "Known keys" in message, done.stderr  # Hydra's own mistakes have two lines
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(extract_command, thin, clips, tmp_path):
    (tmp_path / "out").mkdir()
    lock = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    code = f"{lock}; print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out/.lock"], stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "held\n"
    done = extract_command(f"checkpoint={thin}", f"videos={clips}", f"output={tmp_path}/out", *SMALL)
    holder.communicate("")
    assert done.returncode == 1 and "is in use by another process" in done.stderr
