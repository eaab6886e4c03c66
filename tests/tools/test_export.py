"""Exports give the logits of the network, for every layout and every block."""

import json
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from exports import CLASSES, DEPTH, checkpoint, export_tool, exported, shallow_depth
from runs import config_of
from torch import nn

import nlvideo
from nlvideo.build.model import CONTEXT_BLOCKS, build_model
from nlvideo.config.compose import to_container
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet, context_names
from nlvideo.runtime.errors import RunFailed
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.trained_network import load_model

TOOL = Path(__file__).parents[2] / "tools" / "export.py"
ENDINGS = ("onnx", "pt2")
CLIP = (3, 8, 32, 32)
tool = export_tool()
context = partial(GlobalContextBlock, ratio=4)
NETWORKS = {  # (layout, stem, inside): blocks
    ("c2d", "all_frames", False): {
        "res2.0": partial(NonLocalBlock, mode="gaussian"),
        "res3.0": partial(NonLocalBlock, scale=True),
        "res3.1": partial(NonLocalBlock, mode="dot_product", pool="after"),
        "res4.0": partial(NonLocalBlock, norm=False),
        "res4.1": partial(NonLocalBlock, mode="gaussian", extent="time"),
    },
    ("i3d", "released_8x8", False): {
        "res2.0": partial(NonLocalBlock, extent="space", subsample=False),
        "res3.0": partial(NonLocalBlock, extent="time", norm=False),
        "res3.1": partial(NonLocalBlock, mode="gaussian", pool="after", group_frames=2),
        "res4.0": partial(NonLocalBlock, mode="concatenation", extent="space", pool="after", bias=False),
        "res4.1": partial(NonLocalBlock, group_frames=2),
    },
    ("i3d_333", "pyslowfast", False): {
        "res2.0": SimplifiedNonLocalBlock,
        "res3.0": context,
        "res3.1": partial(context, pooling="average"),
        "res4.0": partial(context, fusion="mul"),
        "res4.1": partial(context, pooling="average", fusion="mul", norm=False),
    },
    ("slow", "all_frames", True): {
        "res2.0": SimplifiedNonLocalBlock,
        # Here x does not come from a ReLU, after which all a_i + b_j may be negative and f zero.
        "res3.0": partial(NonLocalBlock, mode="concatenation", norm=False),
        "res3.1": partial(NonLocalBlock, mode="dot_product", extent="time"),
        "res4.0": context,
        "res4.1": partial(context, pooling="average"),
        "res5.0": partial(context, pooling="average", fusion="mul"),
    },
}

QUICK = [("c2d", "onnx"), ("i3d_333", "pt2")]  # the paper's block and the others, each format once


@pytest.fixture(scope="module", autouse=True)
def shallow_networks():
    with shallow_depth():
        yield


def network_of(layout: str, stem: str, inside: bool, blocks=None) -> VideoResNet:
    """Returns a narrow network whose batch norms have statistics, and whose blocks contribute."""
    network = VideoResNet(layout, DEPTH, stem, 5, width=4, blocks=blocks, inside=inside)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            # Residual branches as large as their shortcuts would amplify rounding errors.
            gain = 0.2 if name.endswith("bn3") else 1.0
            nn.init.uniform_(module.weight, 0.5 * gain, 1.5 * gain)
            nn.init.normal_(module.bias, std=0.2 * gain)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    network.eval()
    for module in network.modules():
        if isinstance(module, CONTEXT_BLOCKS):
            norm = getattr(module, "bn", None)
            nn.init.normal_(module.last_weight, std=0.02 if isinstance(module, NonLocalBlock) and norm is None else 0.3)
            if norm is not None:  # the output of some modes is far from unit variance
                norm.train().momentum = 1.0
    with torch.no_grad():
        network(torch.randn(2, *CLIP))
    return network.eval()


def run_file(path: Path, clips: torch.Tensor) -> torch.Tensor:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(clips)
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"clips": clips.numpy()})[0])


def skip_without_packages(ending: str) -> None:
    for name in tool.ONNX_PACKAGES if ending == "onnx" else ():
        pytest.importorskip(name, reason=f"ONNX needs {name}: pip install nlvideo[export]")


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        pytest.param(
            kind, ending, id=f"{kind[0]}-{ending}", marks=[pytest.mark.nightly] * ((kind[0], ending) not in QUICK)
        )
        for kind in NETWORKS
        for ending in ENDINGS
        if (kind[0], ending) not in (("i3d", "onnx"), ("slow", "pt2"))  # what they have, the others have too
    ],
)
@torch.no_grad()
def test_every_layout_and_block(kind, ending, tmp_path):
    skip_without_packages(ending)
    network = network_of(*kind, NETWORKS[kind])
    path = tmp_path / f"network.{ending}"
    difference = tool.export_network(network, CLIP, path)
    assert difference <= 5e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, f"{path.name}.json"])
    assert not any(block.plain for block in network.modules() if isinstance(block, NonLocalBlock))
    clips = torch.randn(2, *CLIP)
    expected = network(clips)
    for name in context_names(network):  # each block contributes more than the tolerance above
        network.get_submodule(name).last_weight.mul_(1.1)
        before, expected = expected, network(clips)
        assert (before - expected).abs().max() > 1e-4 * expected.abs().max(), name


EXPORTS = [("uint8.onnx", True), ("network.pt2", False)]


@pytest.mark.parametrize(("name", "uint8"), EXPORTS)
@torch.no_grad()
def test_an_export_holds_its_description_and_the_weights_of_an_evaluation(name, uint8):
    skip_without_packages(name.partition(".")[2])
    path = exported(name, uint8)
    text = path.with_name(f"{name}.json").read_text()
    description = json.loads(text)
    assert description["classes"] == CLASSES and description["step"] == 2
    assert description["input"]["shape"] == ["batch", 3, 4, 40, 40]
    assert description["input"]["dtype"] == ("uint8" if uint8 else "float32")
    std = [0.229, 0.224, 0.225]
    assert description["normalization"] == {"mean": [0.3, 0.4, 0.5], "std": std, "inside": uint8}
    assert (description["num_frames"], description["frame_stride"], description["block"]) == (4, 2, "non_local")
    size = [description[key] for key in ("short_side", "crop_size", "clip_fps")]
    assert size == [50, 40, None] and description["views"]["num_clips"] == 3 and description["views"]["num_crops"] == 3
    assert description["output"] == {"name": "logits", "shape": ["batch", 3], "scores": "softmax"}
    if path.suffix == ".onnx":
        import onnx

        held = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
        assert {key: held[key] for key in description} == description
    else:
        held = {"description.json": ""}
        torch.export.load(path, extra_files=held)
        assert held["description.json"] == text
        with zipfile.ZipFile(path) as archive:  # pickled weights would be loaded with whatever code they bring
            configs = [archive.read(name).decode() for name in archive.namelist() if name.endswith("_config.json")]
        assert configs and not any('"use_pickle": true' in config for config in configs)

    pixels = torch.randint(256, (5, 3, 4, 40, 40), dtype=torch.uint8)
    clips = (pixels / 255 - torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
    expected = load_model(checkpoint())(clips)
    found = run_file(path, pixels if uint8 else clips)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "uint8"), EXPORTS)
def test_an_export_names_no_file_of_this_machine(name, uint8):
    """The exporters store where the code of each operator stands, some 700 times."""
    skip_without_packages(name.partition(".")[2])
    path = exported(name, uint8)
    held = path.read_bytes()
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            held = b"".join(map(archive.read, archive.namelist()))
    places = (sys.prefix, Path(nlvideo.__file__).parent, Path(torch.__file__).parent, Path.home(), path.parent)
    assert not [place for place in map(str, places) if place.encode() in held]
    assert b'.py", line' not in held


@pytest.mark.nightly
def test_the_command_prints_two_lines_and_nothing_else(tmp_path):
    """In a process of its own, whose stderr the exporter's packages leave empty."""
    skip_without_packages("onnx")
    config = config_of(tmp_path, tmp_path, "model.width=2", "block=none")
    content = {"model": build_model(config.model, config.block, config.data, 3).state_dict(), "step": 2}
    save_checkpoint(tmp_path / "checkpoint.pt", content | {"config": to_container(config), "classes": CLASSES})
    command = [sys.executable, TOOL, tmp_path / "checkpoint.pt", tmp_path / "a network.onnx", "--normalize"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "of the largest logit" in done.stdout and len(done.stdout.splitlines()) == 2
    names = ["a network.onnx", "a network.onnx.json", "checkpoint.pt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_an_export_that_differs_from_the_network_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "TOLERANCE", -1.0)
    with pytest.raises(RunFailed, match="network.pt2 would differ from the network by .* of the largest logit"):
        tool.export_network(network_of("c2d", "all_frames", False), CLIP, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_differences_are_relative_and_other_shapes_and_nan_are_infinitely_far():
    ones = torch.ones(2, 3)
    assert tool._relative_difference(ones * 3, ones * 2) == 0.5
    assert tool._relative_difference(ones * float("nan"), ones) == tool._relative_difference(ones[:1], ones) > 1


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tool, "_write_archive", full)
    monkeypatch.setattr(tool, "_program", lambda *_: None)
    with pytest.raises(RunFailed, match=r"network.pt2 could not be written: No space left on device\.$"):
        tool.export_network(network_of("c2d", "all_frames", False), CLIP, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "taken.pt2").touch()
    (tmp_path / "described.pt2.json").touch()
    (tmp_path / "text.pt").write_text("no checkpoint")
    monkeypatch.setattr(tool, "find_spec", lambda name: None if name == "onnxruntime" else "found")
    for source, out, message in (
        (checkpoint(), "network.pth", "network.pth must end in .onnx or .pt2"),
        (checkpoint(), "taken.pt2", "taken.pt2 exists already; nothing is overwritten."),
        (checkpoint(), "described.pt2", "described.pt2.json exists already; nothing is overwritten."),
        (checkpoint(), "nowhere/network.pt2", "nowhere does not exist."),
        (checkpoint(), "network.onnx", "ONNX needs the packages onnxruntime: pip install nlvideo[export]"),
        (tmp_path / "none.pt", "network.pt2", "none.pt does not exist."),
        (tmp_path / "text.pt", "network.pt2", "text.pt is not a checkpoint that can be read"),
    ):
        monkeypatch.setattr(sys, "argv", ["export.py", str(source), str(tmp_path / out)])
        with pytest.raises(SystemExit) as raised:
            tool.main()
        assert str(raised.value.code).startswith("error: ") and message in raised.value.code
        assert "\n" not in raised.value.code
    assert capsys.readouterr().out == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["described.pt2.json", "taken.pt2", "text.pt"]
