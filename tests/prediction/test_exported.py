"""Exported networks in the place of a checkpoint, and the example that runs one without this project."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_tool
from PIL import Image
from runs import config_of

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.data.clips.view_sampling import CLIP_SAMPLINGS, view_indices
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.trained_network import load_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict_with_onnxruntime.py"
pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime: pip install nlvideo[export]")
pytest.importorskip("onnxscript", reason="ONNX needs onnxscript: pip install nlvideo[export]")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A video of 60 noisy, moving frames, wider than high, whose sizes the resized ones do not divide."""
    path, rng = tmp_path_factory.mktemp("video") / "video.mp4", np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize((160, 96), 3)
    with VideoWriter(path, 25, {"crf": "10"}) as writer:
        for i in range(60):
            writer.write(np.roll(np.asarray(picture), 2 * i, (0, 1)[i % 2 :][:1])[:80, :110])
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """A folder with checkpoint.pt of an untrained network, whose scores differ, and its exports."""
    folder = tmp_path_factory.mktemp("exports")
    views = "data.test={num_clips: 3, num_crops: 3, short_side: 50, crop_size: 50}"
    config = config_of(folder, folder, "block.norm=false", "data.crop_size=40", "data.scale_range=[40,50]", views)
    torch.manual_seed(2)
    network = build_model(config.model, config.block, config.data, 3).train()
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = None
                module.weight.fill_(0.3 if name.endswith("bn3") else 0.8)
        network(torch.randn(8, 3, 4, 40, 40))
        network.fc.weight.mul_(20)
    content = {"model": network.state_dict(), "step": 2, "config": to_container(config)}
    save_checkpoint(folder / "checkpoint.pt", content | {"classes": ["up", "down", "still"]})
    return folder


@pytest.fixture(scope="module")
def exported(exports):
    """Exports once for each ending and choice, on demand."""

    def path_of(name: str, *options: str) -> Path:
        if not (exports / name).exists():
            tool = Path(__file__).parents[2] / "tools/export.py"
            command = [sys.executable, tool, exports / "checkpoint.pt", exports / name, *options]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
        return exports / name

    return path_of


AS_EXPORTED = {"data.test.crop_size": 40, "precision": "float32"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("network.onnx", []),
        pytest.param("uint8.onnx", ["--normalize"], marks=pytest.mark.slow),
        pytest.param("network.pt2", [], marks=pytest.mark.slow),
    ],
)
def test_an_export_gives_the_scores_of_its_checkpoint(exports, exported, video, name, options):
    """Both exports of the documented pair of commands lie in one folder, each with its description."""
    path = exported(name, *options)
    assert path.with_name(f"{name}.json").is_file()
    expected = Predictor(exports / "checkpoint.pt", settings=AS_EXPORTED)
    predictor = Predictor(path, settings={"trusted": True} if path.suffix == ".pt2" else None)
    assert predictor.classes == ["up", "down", "still"] and predictor.device.type == "cpu"
    scores = expected.scores(video)
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(predictor.scores(video), scores, atol=1e-5)
    np.testing.assert_allclose(predictor.slide(video).scores, expected.slide(video).scores, atol=1e-5)
    one = {"data.test.num_clips": 1, "data.test.num_crops": 1, "data.frame_stride": 3}
    trusted = {"trusted": True} if path.suffix == ".pt2" else {}
    found = Predictor(path, settings=one | trusted).scores(video)
    np.testing.assert_allclose(
        found, Predictor(exports / "checkpoint.pt", settings=one | AS_EXPORTED).scores(video), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("network.onnx", []), pytest.param("uint8.onnx", ["--normalize"], marks=pytest.mark.slow)],
)
def test_the_example_gives_the_same_scores_without_this_project(exports, exported, video, tmp_path, name, options):
    blocked = (
        "import sys; sys.modules['torch'] = sys.modules['nlvideo'] = None; import runpy; sys.argv = sys.argv[1:]; "
    )
    run = f"{blocked}runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, SCRIPT, exported(name, *options), video]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictor = Predictor(exports / "checkpoint.pt", settings=AS_EXPORTED)
    expected = dict(zip(predictor.classes, predictor.scores(video), strict=True))
    assert json.loads(done.stdout) == {key: pytest.approx(value, abs=1e-4) for key, value in expected.items()}


def test_the_rules_in_the_description_are_those_of_the_views(monkeypatch, capsys):
    """What the json says in words, evaluated as Python."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("export_tool", SCRIPT.parents[1] / "tools/export.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
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


def test_what_an_export_cannot_do_is_one_line(exports, exported, tmp_path):
    path = exported("network.onnx")
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
    with pytest.raises(UserError, match="network.onnx is an exported network, which nlvideo-predict alone takes"):
        load_model(path)


def test_an_onnx_file_of_others_is_refused(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("network.onnx"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="other.onnx does not describe its clips as tools/export.py does: 'input'"):
        Predictor(tmp_path / "other.onnx")


def test_the_command_takes_an_export(exported, video, monkeypatch, capsys):
    from in_process import run_main

    from nlvideo.prediction.command import main

    words = [video, f"checkpoint={exported('network.onnx')}", "json=true", "data.test.num_crops=1"]
    done = run_main(main, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["num_views"] == 3 and answer["protocol"]["crop_size"] == 40
    assert {guess["class"] for guess in answer["predictions"]} == {"up", "down", "still"}
    done = run_tool("export.py", video, "x.onnx", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1
