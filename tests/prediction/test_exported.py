"""Exported networks in the place of a checkpoint, and the example that runs one without this project."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CLASSES, checkpoint, export_tool, exported, shallow_depth, write_noisy_video
from in_process import run_tool

from nlvideo.data.clips.view_sampling import CLIP_SAMPLINGS, view_indices
from nlvideo.features.extractor import FeatureExtractor
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.weights.exported_network import read_network
from nlvideo.weights.trained_network import load_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict_with_onnxruntime.py"
pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime: pip install nlvideo[export]")
pytest.importorskip("onnxscript", reason="ONNX needs onnxscript: pip install nlvideo[export]")


@pytest.fixture(scope="module", autouse=True)
def shallow_networks():
    with shallow_depth():
        yield


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A video wider than high, whose sizes the resized ones do not divide."""
    return write_noisy_video(tmp_path_factory.mktemp("video") / "video.mp4", 80, 110)


AS_EXPORTED = {"data.test.crop_size": 40, "precision": "float32"}
NAMES = [
    pytest.param("network.onnx", False, marks=pytest.mark.slow),
    ("uint8.onnx", True),
    ("network.pt2", False),
]


@pytest.mark.parametrize(("name", "uint8"), NAMES)
def test_an_export_gives_the_scores_of_its_checkpoint(video, name, uint8):
    """Both exports of the documented pair of commands lie in one folder, each with its description."""
    path = exported(name, uint8)
    assert path.with_name(f"{name}.json").is_file()
    expected = Predictor(checkpoint(), settings=AS_EXPORTED)
    trusted = {"trusted": True} if path.suffix == ".pt2" else {}
    predictor = Predictor(path, settings=trusted)
    assert predictor.classes == CLASSES and predictor.device.type == "cpu"
    scores = expected.scores(video)
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(predictor.scores(video), scores, atol=1e-5)
    np.testing.assert_allclose(predictor.slide(video).scores, expected.slide(video).scores, atol=1e-5)
    one = {"data.test.num_clips": 1, "data.test.num_crops": 1, "data.frame_stride": 3}
    found = Predictor(path, settings=one | trusted).scores(video)
    np.testing.assert_allclose(found, Predictor(checkpoint(), settings=one | AS_EXPORTED).scores(video), atol=1e-5)


@pytest.mark.parametrize(("name", "uint8"), NAMES[:2])
@pytest.mark.parametrize(("height", "width"), [(80, 110), (96, 96), (96, 70)])
def test_the_example_gives_the_same_scores_without_this_project(tmp_path, name, uint8, height, width):
    path = shutil.copy(exported(name, uint8), tmp_path / "alone.onnx")  # without the json
    video = write_noisy_video(tmp_path / "video.mp4", height, width)
    done = run_example(path, video)
    assert done.returncode == 0, done.stderr
    predictor = Predictor(checkpoint(), settings=AS_EXPORTED)
    expected = dict(zip(predictor.classes, predictor.scores(video), strict=True))
    assert json.loads(done.stdout) == {key: pytest.approx(value, abs=2e-5) for key, value in expected.items()}


def run_example(network: Path, video: Path) -> subprocess.CompletedProcess:
    blocked = (
        "import sys; sys.modules['torch'] = sys.modules['nlvideo'] = None; import runpy; sys.argv = sys.argv[1:]; "
    )
    run = f"{blocked}runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, SCRIPT, network, video]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=video.parent)


def test_the_example_refuses_what_it_cannot_do_in_one_line(onnx_model, tmp_path):
    other = changed(onnx_model, tmp_path, views={"clip_sampling": "slowfast", "pooling": "mean"})
    done = run_example(other, tmp_path / "video.mp4")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {other} is made for clip_sampling=slowfast; this example does uniform alone.\n"
    bare = copy.deepcopy(onnx_model)
    del bare.metadata_props[1:]
    done = run_example(changed(bare, tmp_path), tmp_path / "video.mp4")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {other} does not say how its clips are made: it lacks views, num_frames, ")


def test_the_rules_in_the_description_are_those_of_the_views():
    """What the json says in words, evaluated as Python."""
    tool = export_tool()
    assert tool.CLIPS.keys() == {*CLIP_SAMPLINGS}
    for sampling, rule in tool.CLIPS.items():
        for frames in (5, 61, 300):
            parts = dict(
                part.split(" is " if part.startswith(("start", "frame")) else " = ") for part in rule.split("; ")
            )
            given = {"frames": frames, "num_clips": 4, "num_frames": 8, "frame_stride": 3, "fps": 25.0}
            given |= {"floor": int, "kept": None, "max": max, "round": round}
            for name in ("last", "length"):
                if name in parts:
                    given[name] = eval(parts[name], given)
            expected = view_indices(sampling, 4, frames, 8, 3, 25.0)
            for i in range(4):
                start, _, bounds = parts["start i"].split(", of a single")[0].partition(", kept within ")
                start = eval(start, given | {"i": i})
                start = min(max(start, 0), given["last"]) if bounds else start
                text, _, bounds = parts["frame t"].partition(", kept within ")
                numbers = [eval(text, given | {"start": start, "t": t}) for t in range(8)]
                numbers = [int(min(max(n, 0), frames - 1)) for n in numbers] if bounds else numbers
                assert numbers == expected[i].tolist(), (sampling, frames, i)


def test_an_archive_is_not_read_unless_it_is_trusted(tmp_path, monkeypatch):
    """A .pt2 archive of another origin, whose graph calls a function of torch's modules: nothing of it is loaded."""
    with zipfile.ZipFile(tmp_path / "network.pt2", "w") as archive:
        archive.writestr("network/models/model.json", '{"target": "torch.os.system"}')
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("the archive was loaded"))
    for settings in (None, {"trusted": False}, {"trusted": "yes"}):
        with pytest.raises(
            UserError, match=r"network.pt2 could run code: .* give trusted=true; an .onnx file runs none"
        ):
            Predictor(tmp_path / "network.pt2", settings=settings)


def test_what_an_export_cannot_do_is_one_line(tmp_path):
    path = exported("uint8.onnx", True)
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "text.pt2").write_text("no network")
    for file, arguments, message in (
        (path, {"settings": {"data.num_frames": 8}}, "takes clips of 4 frames of 40x40 alone, not 8 of 40x40"),
        (path, {"settings": {"data.test.crop_size": 50}}, "alone, not 4 of 50x50"),
        (path, {"precision": "bfloat16"}, "runs on the CPU in float32, not on cpu in bfloat16"),
        (path, {"device": "cuda"}, "runs on the CPU in float32, not on cuda"),
        (tmp_path / "none.onnx", {}, "none.onnx does not exist"),
        (tmp_path / "text.onnx", {}, "text.onnx is not an ONNX file that can be read"),
        (tmp_path / "text.pt2", {"settings": {"trusted": True}}, "text.pt2 is not a .pt2 archive that can be read"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            Predictor(file, **arguments)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="an exported network, which only nlvideo-predict and nlvideo-extract take"):
        load_model(path)


@pytest.fixture(scope="module")
def onnx_model():
    onnx = pytest.importorskip("onnx")
    return onnx.load(exported("uint8.onnx", True))


def changed(model, folder: Path, name: str | None = None, **entries: object) -> Path:
    """Writes an ONNX file with other entries in its description, and another name of its input."""
    import onnx

    model = copy.deepcopy(model)
    held = {entry.key: entry for entry in model.metadata_props}
    for key, value in entries.items():
        entry = held.get(key) or model.metadata_props.add()
        entry.key, entry.value = key, value if key == "author" else json.dumps(value)
    if name is not None:
        for node in model.graph.node:
            node.input[:] = [name if word == "clips" else word for word in node.input]
        model.graph.input[0].name = name
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_an_onnx_file_that_is_not_what_it_says_is_refused(onnx_model, tmp_path):
    held = {entry.key: json.loads(entry.value) for entry in onnx_model.metadata_props if entry.key != "resize"}
    longer, colours = held["input"] | {"shape": ["batch", 3, 8, 40, 40]}, held["normalization"]
    for entries, message in (
        ({"classes": ["up", "down"]}, "contradicts itself in output and classes: .3. and .2."),
        ({"classes": ["up", "down", "up"]}, "the class 'up' is named 2 times"),
        ({"classes": list("abcde")}, "contradicts itself in output and classes: .3. and .5."),
        ({"num_frames": 8, "input": longer}, r"its input is to be clips, uint8 .*8, 40, 40., and is .*4, 40, 40"),
        ({"num_frames": 8}, "contradicts itself in input and num_frames, crop_size"),
        ({"name": "x"}, r"its input is to be clips, uint8 .*, and is .\('x', 'uint8'"),
        ({"normalization": colours | {"inside": False}}, "in input and normalization: uint8 and float32"),
        ({"short_side": "${oc.env:HOME}"}, "a reference"),
        ({"clip_fps": 1e9}, "data.clip_fps=1000000000.0 is outside 0.001 to 1000"),
        ({"views": held["views"] | {"num_clips": 10**9}}, "data.test.num_clips=1000000000 is outside 1 to 1000"),
        ({"views": 3}, "'int' object is not subscriptable"),
    ):
        with pytest.raises(UserError, match=f"changed.onnx does not describe its clips as .*{message}") as raised:
            Predictor(changed(onnx_model, tmp_path, **entries))
        assert "\n" not in str(raised.value)
    others = copy.deepcopy(onnx_model)
    next(entry for entry in others.metadata_props if entry.key == "step").value = "[" * 200000
    with pytest.raises(UserError, match="changed.onnx does not describe its clips as .* recursion"):
        Predictor(changed(others, tmp_path))
    del others.metadata_props[:]
    with pytest.raises(UserError, match="changed.onnx does not describe its clips as tools/export.py does: .*'input'"):
        Predictor(changed(others, tmp_path))


def test_entries_that_other_programs_add_are_no_matter(onnx_model, video, tmp_path):
    found = Predictor(changed(onnx_model, tmp_path, author="Jane")).scores(video)
    np.testing.assert_array_equal(found, Predictor(exported("uint8.onnx", True)).scores(video))


def test_the_command_takes_an_export(video, monkeypatch, capsys):
    from in_process import run_main

    from nlvideo.prediction.command import main

    words = [video, f"checkpoint={exported('uint8.onnx', True)}", "json=true", "data.test.num_crops=1"]
    done = run_main(main, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["num_views"] == 3 and answer["protocol"]["crop_size"] == 40
    assert {guess["class"] for guess in answer["predictions"]} == {"up", "down", "still"}
    done = run_tool("export.py", video, "x.onnx", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1


@pytest.mark.parametrize(("name", "uint8"), NAMES)
def test_features_of_an_export_are_the_logits_of_its_checkpoint(video, name, uint8):
    head = {"layer": "head"}
    found = FeatureExtractor(exported(name, uint8), settings=head | {"trusted": name.endswith(".pt2")})(video)
    expected = FeatureExtractor(checkpoint(), settings=head | {"crop_size": 40})(video)
    assert found.shape == (7, 3, 3) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


def test_what_extraction_cannot_take_of_an_export_is_one_line():
    path, head = exported("uint8.onnx", True), {"layer": "head"}
    for file, settings, message in (
        (path, {}, "layer=res5: .*uint8.onnx is an exported network, which gives layer=head alone; for res5 and res4"),
        (path, head | {"crops": "full"}, "crops=full: .* takes crops of 40 alone. Choose from: 1, 3, 5, 10."),
        (path, head | {"crop_size": 50}, r"alone, not 4 of 50x50 \(snippet.frames, crop_size\)"),
        (path, head | {"precision": "bfloat16"}, "precision=bfloat16: .* runs in float32"),
        (path, head | {"data.mean": [0.5, 0.5, 0.5]}, "data.mean, data.std or preset=paper: .* its clips itself"),
        (exported("network.pt2", False), head, "network.pt2 could run code: .* give trusted=true"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            FeatureExtractor(file, settings=settings)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "uint8"), NAMES[1:])
def test_another_rank_opens_the_file_itself(name, uint8):
    read = read_network(exported(name, uint8), trusted=True)
    again = pickle.loads(pickle.dumps(read))
    clips = torch.randint(256, (1, 3, 4, 40, 40), dtype=torch.uint8)
    clips = clips if uint8 else clips.float()
    assert again.sha256 == read.sha256 and torch.equal(*(x.network.position_logits(clips) for x in (read, again)))
