"""Other projects' files are recognised, and say of their network what their keys, configs and presets tell."""

import numpy as np
import pytest
import torch
import yaml
from conftest import composed
from other_projects import file_of
from torchvision.models import resnet18, resnet50

from nlvideo.build.model import build_model
from nlvideo.config.schema import PredictConfig
from nlvideo.evaluation.settings import merge_settings
from nlvideo.prediction.predictor import Predictor
from nlvideo.weights.adoption import take_from_pretrained
from nlvideo.weights.importers import import_weights
from nlvideo.weights.pretrained import load_pretrained
from nlvideo.weights.trained_network import load_model, read_trained

PROJECTS = ("pyslowfast", "mmaction2", "caffe2", "pytorch_resnet3d")
MMENGINE = """
model = dict(
    backbone=dict(type='ResNet3d', conv1_stride_t=2, pool1_stride_t=2, non_local_cfg=dict(
        sub_sample=True, use_scale={scale}, mode='{mode}')),
    data_preprocessor=dict(mean=[114.75, 114.75, 114.75], std=[57.375, 57.375, 57.375]))
train_pipeline = [dict(type='DecordInit', **file_client_args),
                  dict(type='SampleFrames', clip_len=16, frame_interval=4, num_clips=1)]
"""


def network_of(*overrides: str, classes: int = 3):
    """A thin network with random weights and statistics, none of them at their initial values."""
    made = composed("data.root=x", "model.width=8", *overrides)
    network = build_model(made.model, made.block, made.data, classes).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_(std=0.1).abs_() if value.ndim == 1 else value.normal_(std=0.1)
    return network


@pytest.mark.parametrize("project", PROJECTS)
def test_a_file_brings_its_network_clips_and_colours(tmp_path, project):
    network = network_of("model=i3d_r50", "block=nl5", "block.mode=embedded_gaussian")
    if project == "mmaction2":
        for key, value in network.state_dict().items():
            if key.endswith("_nl.out.bias"):
                value.zero_()
    path = file_of(tmp_path, project, network)
    stated = {"data.root": "x", "block.mode": "embedded_gaussian"}
    config = take_from_pretrained(composed("data.root=x", f"model.pretrained={path}"), stated)
    stems = dict(zip(PROJECTS, ("pyslowfast", "mmaction2", "released_32x2", "released_32x2"), strict=True))
    assert (config.model.layout, config.model.depth, config.model.width) == ("i3d", 50, 8)
    assert config.model.stem == stems[project]
    assert config.block.kind == "non_local" and config.block.places["r50"] == list(network.places)
    assert config.block.scale == (project != "mmaction2")
    assert config.block.pool == ("after" if project == "mmaction2" else "before")
    clips = (8, 8) if project == "pyslowfast" else (32, 2)
    assert (config.data.num_frames, config.data.frame_stride) == clips
    assert config.data.mean[0] == (0.485 if project == "mmaction2" else 0.45)

    fresh = build_model(config.model, config.block, config.data, 3)
    line = load_pretrained(fresh, config, ["0", "1", "2"]).sentence
    assert "a new head for 3 classes (the 3 classes of the checkpoint have no names)" in line
    assumed = line.partition("; assumed: ")[2]
    assert "differs" not in line and f"model.stem={stems[project]}" in assumed
    assert ("block.mode=embedded_gaussian" in assumed) == (project != "mmaction2")  # there it was given
    for key, value in network.state_dict().items():
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked"):
            assert torch.equal(fresh.state_dict()[key], value), key


@pytest.mark.parametrize("project", ["pyslowfast", "caffe2", "pytorch_resnet3d"])
def test_a_file_is_evaluated_as_it_is(tmp_path, project):
    network = network_of("model=i3d_r50", "block=nl1")
    trained = read_trained(file_of(tmp_path, project, network))
    assert trained.classes == ["0", "1", "2"] and trained.step == 0 and len(trained.sha256) == 64
    assert merge_settings(PredictConfig, trained.config, {"checkpoint": "x"}).data.mean == [0.45] * 3
    assert trained.named(["a", "b", "c"]).classes == ["a", "b", "c"]
    assert trained.named(["2", "1", "0"]).classes == ["0", "1", "2"]  # numbers are matched, not taken for names
    loaded = load_model(trained.path)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value) or key.endswith("num_batches_tracked"), key


def test_the_outputs_of_a_file_get_their_names_in_predictions(tmp_path):
    path = file_of(tmp_path, "pyslowfast", network_of("model=c2d_r50_8x8", "block=none"))
    for name, classes in (("three.txt", "a\nb\nc\n"), ("two.txt", "a\nb\n")):
        (tmp_path / name).write_text(classes)
    assert Predictor(path, settings={"data.classes": f"{tmp_path}/three.txt"}).classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match="two.txt names 2 classes, the network has 3"):
        Predictor(path, settings={"data.classes": f"{tmp_path}/two.txt"})


def test_what_pyslowfast_writes_beside_its_weights_is_read(tmp_path):
    text = yaml.safe_dump(
        {
            "NONLOCAL": {"INSTANTIATION": "dot_product"},
            "DATA": {"NUM_FRAMES": 16, "SAMPLING_RATE": 4, "MEAN": [0.5] * 3, "STD": [0.25] * 3},
            "MODEL": {"ARCH": "i3d"},
        }
    )
    network = network_of("model=i3d_r50_8x8", "block=nl1_dot_product")
    trained = read_trained(file_of(tmp_path, "pyslowfast", network, cfg=text))
    config = trained.config
    assert config.block.mode == "dot_product" and not config.block.scale and config.model.stem == "pyslowfast"
    assert (config.data.num_frames, config.data.frame_stride) == (16, 4)
    assert config.data.mean == [0.5] * 3 and config.data.std == [0.25] * 3
    assert "block.mode" not in trained.note.partition("assumed")[2]


@pytest.mark.parametrize("arch", ["slow_c2d", "c2d_nopool"])  # its name in the code of 2026, and in that of 2020
def test_pyslowfasts_names_of_networks_without_temporal_pooling(tmp_path, arch):
    network = network_of("model=c2d_r50_8x8", "block=none")
    text = yaml.safe_dump({"MODEL": {"ARCH": arch}})
    assert read_trained(file_of(tmp_path, "pyslowfast", network, cfg=text)).config.model.stem == "all_frames"


@pytest.mark.parametrize(("mode", "scale"), [("embedded_gaussian", True), ("dot_product", False)])
def test_what_mmengine_writes_beside_its_weights_is_read_and_never_run(tmp_path, mode, scale):
    network = network_of("model=i3d_r50", "block=nl1", f"block.mode={mode}")
    target = tmp_path / "made_by_the_file"
    text = MMENGINE.format(mode=mode, scale=scale) + f"__import__('os').mkdir({str(target)!r})\n"
    meta = {"cfg": text, "dataset_meta": {"classes": ["a", "b", "c"]}}
    trained = read_trained(file_of(tmp_path, "mmaction2", network, meta=meta))
    assert not target.exists() and trained.classes == ["a", "b", "c"]
    assert trained.config.block.mode == mode and trained.config.block.scale == scale
    assert (trained.config.data.num_frames, trained.config.data.frame_stride) == (16, 4)
    assert np.allclose(trained.config.data.mean, 0.45)
    config = take_from_pretrained(composed("data.root=x", f"model.pretrained={trained.path}"), {})
    kept = load_pretrained(build_model(config.model, config.block, config.data, 3), config, ["a", "b", "c"]).sentence
    assert "mmaction2 weights; its head kept; no new blocks" in kept


def test_a_mode_that_nothing_tells_is_asked_for(tmp_path):
    path = file_of(tmp_path, "mmaction2", network_of("model=i3d_r50", "block=nl1"))
    message = "give block.mode=embedded_gaussian or block.mode=dot_product, with model.pretrained, or to tools/convert"
    with pytest.raises(ValueError, match=message):
        read_trained(path)
    with pytest.raises(ValueError, match=message):
        take_from_pretrained(composed("data.root=x", f"model.pretrained={path}"), {})
    assert load_model(path, config=["block.mode=dot_product"]).layer3[5].mode == "dot_product"


def test_a_2d_network_brings_depth_and_colours_and_is_not_evaluated(tmp_path):
    torch.save(resnet50(num_classes=3).state_dict(), tmp_path / "resnet50.pth")
    stated = {"model.layout": "c2d", "model.depth": 50, "model.stem": "released_8x8"}
    before = composed(
        "data.root=x", "model=c2d_r50_8x8", f"model.pretrained={tmp_path}/resnet50.pth", "data.mean=[0,0,0]"
    )
    config = take_from_pretrained(before, stated)
    assert config.model == before.model and config.data.mean == [0.485, 0.456, 0.406]
    with pytest.raises(ValueError, match="resnet50.pth: it holds a 2D network's torchvision or timm weights"):
        read_trained(tmp_path / "resnet50.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if not k.startswith("layer3.5.")}, "3, 4, 5, 3 bottlenecks"),
        (lambda state: state | {"layer1.0.conv1.weight": torch.ones(8, 8, 1, 1, 1)}, "in none of the layouts c2d, i3d"),
        (
            lambda state: state | {"extra.weight": torch.ones(1)},
            "1 keys are unknown for pytorch_resnet3d: extra.weight",
        ),
        (lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")}, "it has no classifier"),
        (lambda state: {"conv1.weight": torch.ones(1)}, r"neither an nlvideo .* known \(it holds: conv1.weight\)"),
    ],
)
def test_networks_that_are_none_of_ours_are_refused(tmp_path, change, message):
    state = change(dict(network_of("model=i3d_r50", "block=none").state_dict()))
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"weights.pth: .*{message}"):
        read_trained(tmp_path / "weights.pth")


def test_the_bare_weights_of_a_network_of_ours_are_no_other_projects():
    with pytest.raises(ValueError, match="neither an nlvideo checkpoint nor of a project that is known"):
        import_weights(dict(network_of("model=i3d_r50", "block=nl1").state_dict()))
    with pytest.raises(ValueError, match="0, 0, 0, 0 bottlenecks"):
        import_weights(resnet18().state_dict())
