"""Other projects' checkpoints: the same weights give the same logits, and what is no checkpoint is refused."""

import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import TOOLS, run_tool
from other_projects import to_caffe2, to_pyslowfast
from safetensors.torch import save_file
from seeded_weights import PARITY, SHARED, seeded_clip, seeded_state
from torchvision.models import resnet50, resnet101

import nlvideo
from nlvideo.weights.foreign_files import read_weights_file
from nlvideo.weights.sources import SOURCES
from nlvideo.weights.trained_network import load_model, read_trained

TOOL = "convert_weights.py"
NL5 = ["block=nl5"]


# one of each project and kind, for a quick run, and those that CI adds
QUICK = ("pyslowfast_i3d_nln_8x8_r50", "pyslowfast_c2d_8x8_r50", "mmaction2_i3d_r50_nl_concatenation")
SLOW = (
    "mmaction2_i3d_imagenet_pretrained_r50_nl_dot_product",
    "mmaction2_slowonly_r50_8x8_nl_embedded_gaussian",
    "mmaction2_c2d_r50_nopool_8x8",
    "pyslowfast_c2d_nln_16x8_r50_dot_product",
)


def _marked(cases: list[tuple[str, list[str]]]) -> list:
    """Marks cases that are not in QUICK as slow, and those of which there are others of their kind as nightly."""
    marks = {name: [] for name in QUICK} | {name: [pytest.mark.slow] for name in SLOW}
    return [pytest.param(*case, marks=marks.get(case[0], [pytest.mark.nightly])) for case in cases]


@pytest.mark.parametrize(
    ("name", "config"),
    _marked(
        [
            ("pyslowfast_c2d_8x8_r50", []),
            ("pyslowfast_c2d_nln_8x8_r50", []),
            ("pyslowfast_i3d_8x8_r50", []),
            ("pyslowfast_i3d_nln_8x8_r50", []),
            ("mmaction2_i3d_imagenet_pretrained_r50_nl_dot_product", ["block.mode=dot_product"]),
            ("mmaction2_i3d_imagenet_pretrained_r50_nl_gaussian", []),
            ("pyslowfast_i3d_nln_8x8_r101", []),
            ("pyslowfast_slow_nln_8x8_r50", []),
            ("pyslowfast_c2d_nln_16x8_r50_dot_product", ["block.mode=dot_product", "data.num_frames=16"]),
            ("mmaction2_i3d_r50_nl_concatenation", []),
            ("mmaction2_i3d_r50_nl_embedded_gaussian", ["model=i3d_r50", *NL5, "block.mode=embedded_gaussian"]),
            ("mmaction2_slowonly_r50_8x8_nl_embedded_gaussian", ["block.mode=embedded_gaussian"]),
            ("mmaction2_slowonly_r101_8x8", []),
            ("mmaction2_c2d_r50_8x8", []),
            ("mmaction2_c2d_r50_nopool_8x8", ["model.stem=all_frames"]),
        ]
    ),
)
def test_logits_are_the_rivals(tmp_path, name, config):
    """The file is given directly; only what neither weights nor preset tell is said."""
    fixture = json.loads((PARITY / f"{name}.json").read_text())
    expected = np.load(PARITY / f"{name}.npz")
    wrapped = "model_state" if name.startswith("pyslowfast") else "state_dict"
    network = load_model(saved(tmp_path, {wrapped: seeded_state(name)}), config=config)
    with torch.inference_mode():
        positions = network.position_logits(seeded_clip(fixture["input"]))  # (1, positions, 400)
    if "probabilities" in expected:
        probabilities = positions.softmax(2).mean(1).numpy()
        wanted = expected["probabilities"]
        assert np.linalg.norm(probabilities - wanted) <= 1e-4 * np.linalg.norm(wanted)
    logits, wanted = positions.numpy().reshape(-1, 400), expected["logits"].reshape(-1, 400)
    assert logits.shape == wanted.shape
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert error <= 1e-4, f"relative error {error:.1e}"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_logits_and_features_are_those_of_pytorch_resnet3d(tmp_path):
    name = "pytorch_resnet3d_i3d_r50_nl"
    expected = np.load(SHARED / f"{name}.npz")
    trained = read_trained(saved(tmp_path, seeded_state(name, SHARED)))
    assert "pytorch-resnet3d weights; assumed: block.mode=embedded_gaussian" in trained.note
    clip = seeded_clip(json.loads((SHARED / f"{name}.json").read_text())["input"])
    network = trained.build_network().eval()
    with torch.inference_mode():
        features = network.features(clip).mean((2, 3, 4))
        for found, key in ((features, "features"), (network.fc(features), "logits")):
            error = np.linalg.norm(found.numpy() - expected[key]) / np.linalg.norm(expected[key])
            assert error <= 1e-4, f"{key}: relative error {error:.1e}"


def saved(tmp_path, content) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def trained_network(config, source="pyslowfast"):
    """A small network of the config with random weights and statistics, none of them at their initial values."""
    from conftest import composed

    from nlvideo.build.model import build_model

    stem = SOURCES[source].stems["i3d" if "i3d" in config[0] else config[0][6:].split("_")[0]]
    made = composed(*config, f"model.stem={stem}", "data.root=x")
    network = build_model(made.model, made.block, made.data, 7).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_(std=0.1).abs_() if value.ndim == 1 else value.normal_(std=0.1)
    return network


SMALL = ["model.width=8", "data.num_frames=8"]


@pytest.mark.parametrize(
    "config",
    [
        ["model=i3d_r101_8x8", "block=nl5", *SMALL],
        ["model=slow_r50", "block=nl10", *SMALL],
        ["model=c2d_r50_8x8", "block=nl1", "block.mode=dot_product", *SMALL],
    ],
)
def test_other_networks_of_pyslowfast_come_back_whole(tmp_path, config):
    network = trained_network(config)
    state = {to_pyslowfast(key): value for key, value in network.state_dict().items()}
    loaded = load_model(saved(tmp_path, {"model_state": state}), source="pyslowfast", config=config)
    assert loaded.num_classes == 7
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_caffe2_files_come_back_whole(tmp_path):
    config = ["model=i3d_r50", "block=nl5", *SMALL]
    network = trained_network(config, "caffe2")
    blobs = {to_caffe2(key): value.numpy() for key, value in network.state_dict().items() if to_caffe2(key)}
    blobs |= {"lr": np.float32(0.01), "model_iter": np.int64(400_000), "conv1_w_momentum": np.zeros(3, np.float32)}
    blobs["pred_w"] = blobs["pred_w"][:, :, None, None, None]  # as the test network stores it
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    loaded = load_model(tmp_path / "model.pkl", source="caffe2", config=config)
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[key], value), key
    block = loaded.layer3[1 + 1]
    assert block.pool == "before" and block.logit_scale == pytest.approx(block.theta.out_channels**-0.5)


def test_mmaction2_training_checkpoints_load_with_inert_stubs(tmp_path, monkeypatch):
    """They hold a HistoryBuffer, which weights_only refuses and nobody needs."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.log, self.method = [1, 2], print

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    name = "mmaction2_i3d_imagenet_pretrained_r50_nl_gaussian"
    path = saved(tmp_path, {"message_hub": {"loss": HistoryBuffer()}, "state_dict": seeded_state(name)})
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    config = ["model=i3d_r50", *NL5, "block.mode=gaussian"]
    network = load_model(path, source="mmaction2", config=config)
    assert network.num_classes == 400
    assert torch.equal(network.layer2[2].out.bias, torch.zeros(512))  # mmcv has none before a norm


@pytest.mark.parametrize("build", [resnet50, pytest.param(resnet101, marks=pytest.mark.slow)])
def test_torchvision_weights_of_both_depths(tmp_path, build):
    two_d = build(num_classes=5)
    depth = 50 if build is resnet50 else 101
    path = saved(tmp_path, two_d.state_dict())
    network = load_model(path, source="torchvision", config=[f"model=i3d_r{depth}"])
    assert torch.equal(network.fc.weight, two_d.fc.weight)
    torch.testing.assert_close(network.layer3[2].conv1.weight.sum(2), two_d.layer3[2].conv1.weight)
    save_file(two_d.state_dict(), tmp_path / "timm.safetensors")
    again = load_model(tmp_path / "timm.safetensors", source="timm", config=[f"model=c2d_r{depth}"])
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = two_d.eval()(image)
        assert (again(image.unsqueeze(2).expand(-1, -1, 8, -1, -1)) - expected).norm() <= 1e-4 * expected.norm()


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "timm.safetensors"
    save_file(resnet50(num_classes=5).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="timm.safetensors is not a checkpoint that can be read"):
        load_model(path, source="timm", config=["model=c2d_r50"])


def test_an_nlvideo_checkpoint_needs_no_config(tmp_path):
    from conftest import composed

    from nlvideo.config.compose import to_container
    from nlvideo.weights.checkpoint_file import save_checkpoint

    network = trained_network(["model=i3d_r50", "block=nl1", *SMALL])
    config = to_container(composed("model=i3d_r50", "model.stem=pyslowfast", "block=nl1", "data.root=x", *SMALL))
    content = {"model": network.state_dict(), "step": 3, "config": config, "classes": list("abcdefg")}
    save_checkpoint(tmp_path / "plain.pt", content)
    loaded = nlvideo.load_model(tmp_path / "plain.pt")
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())
    precise = {"bn1.running_mean": torch.full_like(network.bn1.running_mean, 7.0)}
    save_checkpoint(tmp_path / "precise.pt", content | {"precise_bn": precise})
    assert torch.equal(nlvideo.load_model(tmp_path / "precise.pt").bn1.running_mean, precise["bn1.running_mean"])


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_malicious_torch_files_run_nothing_and_are_refused(tmp_path):
    target = tmp_path / "made_by_the_file"
    path = saved(tmp_path, {"state_dict": {}, "x": Malicious(os.mkdir, str(target))})
    with pytest.raises(ValueError, match="it wants to call posix.mkdir, which no file of weights needs"):
        read_weights_file(path)
    assert not target.exists()


def test_malicious_caffe2_files_run_nothing_and_are_refused(tmp_path):
    target = tmp_path / "made_by_the_file"
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"blobs": {"x": Malicious(os.mkdir, str(target))}}, protocol=2))
    with pytest.raises(ValueError, match="posix.mkdir is not allowed in a file of weights"):
        read_weights_file(tmp_path / "bad.pkl")
    assert not target.exists()


@pytest.mark.parametrize("kind", ["caffe2", "torch"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, kind):
    (tmp_path / "text.pth").write_text("hello")
    whole = pickle.dumps({"a": np.ones(1000)}) if kind == "caffe2" else saved(tmp_path, {"a": torch.ones(1000)})
    whole = whole if isinstance(whole, bytes) else whole.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("text.pth", "cut.pth"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint that can be read"):
            read_weights_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        read_weights_file(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["model=i3d_r50_8x8", "block=none", *SMALL], r"keys of the file are not in the network: layer2.1_nl"),
        (["model=i3d_r101_8x8", "block=nl5", *SMALL], "keys of the network are not in the file: "),
        (
            ["model=c2d_r50_8x8", "block=nl5", *SMALL],
            r"keys have another shape: .*\(8, 3, 5, 7, 7\) instead of",
        ),
    ],
)
def test_weights_of_another_network_are_refused_with_a_report(tmp_path, config, message):
    network = trained_network(["model=i3d_r50_8x8", "block=nl5", *SMALL])
    state = {to_pyslowfast(key): value for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_model(saved(tmp_path, state), source="pyslowfast", config=config)


def test_unknown_keys_and_sources_are_named(tmp_path):
    network = trained_network(["model=c2d_r50_8x8", *SMALL])
    state = {to_pyslowfast(key): value for key, value in network.state_dict().items()}
    path = saved(tmp_path, state | {"s1.pathway1_stem.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="1 keys are unknown for pyslowfast: s1.pathway1_stem.conv.weight"):
        load_model(path, source="pyslowfast", config=["model=c2d_r50_8x8", *SMALL])
    with pytest.raises(ValueError, match="source='keras' is unknown. Choose from: nlvideo, pyslowfast, mmaction2"):
        load_model(path, source="keras")


def test_the_converter_writes_a_checkpoint_that_can_be_loaded(tmp_path, monkeypatch, capsys):
    config = ["model=i3d_r50_8x8", "block=nl1", *SMALL]
    network = trained_network(config)
    path = saved(tmp_path, {"model_state": {to_pyslowfast(k): v for k, v in network.state_dict().items()}})
    words = ["pyslowfast", path, tmp_path / "out.pt", *config]
    done = subprocess.run([sys.executable, TOOLS / TOOL, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = load_model(tmp_path / "out.pt")
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())
    again = run_tool(TOOL, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert again.returncode == 1 and "exists already; remove it or give another name" in again.stderr
