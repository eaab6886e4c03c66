"""Checkpoints of ours as other projects' files: they come back bit for bit, and what a project lacks is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from in_process import TOOLS, run_tool
from other_projects import in_words_of
from seeded_weights import PARITY, SHARED, seeded_clip, seeded_state

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.runtime.errors import UserError
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.foreign_files import read_weights_file
from nlvideo.weights.foreign_writing import WRITTEN_PROJECTS, foreign_content
from nlvideo.weights.sources import SOURCES
from nlvideo.weights.trained_network import TrainedCheckpoint, load_model, read_trained

TOOL = "convert_weights.py"
SMALL = ["model.width=8", "data.num_frames=8", "data.frame_stride=8"]
PSF = ["model=i3d_r50_8x8", "model.stem=pyslowfast", "block.scale=true"]
MMA = ["model=i3d_r50", "model.stem=mmaction2", "block.pool=after"]
RN3D = ["model=i3d_r50", "model.stem=released_32x2", "block=nl5", "block.scale=true"]
NAMES_LOST = "its class names are not in the file: they come back as numbers, or are given again by --classes"


def trained_as(tmp_path: Path, *config: str, zero_out_bias: bool = False) -> TrainedCheckpoint:
    """A checkpoint with random weights and statistics, none of them at their initial values."""
    made = composed(*config, "data.root=x")
    network = build_model(made.model, made.block, made.data, 7)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.normal_(std=0.1)
            if value.ndim == 1:
                value.abs_().add_(0.1)
        if zero_out_bias and key.endswith("_nl.out.bias"):
            value.zero_()
    content = {"model": network.state_dict(), "step": 3, "config": to_container(made), "classes": list("abcdefg")}
    save_checkpoint(tmp_path / "ours.pt", content)
    return read_trained(tmp_path / "ours.pt")


@pytest.mark.parametrize(
    ("project", "config"),
    [
        ("pyslowfast", [*PSF, "block=nl5", *SMALL]),
        ("pyslowfast", ["model=c2d_r50_8x8", "model.stem=all_frames", "block=nl1", "block.mode=dot_product", *SMALL]),
        ("pyslowfast", ["model=slow_r50", "model.depth=101", "block=none", *SMALL]),
        ("mmaction2", [*MMA, "block=nl5", "block.mode=gaussian", *SMALL]),
        ("mmaction2", [*MMA, "block=nl5", "block.mode=concatenation", "block.subsample=false", *SMALL]),
        ("mmaction2", ["model=slow_r50", "block=nl10", "block.pool=after", "block.scale=true", *SMALL]),
        ("mmaction2", ["model=c2d_r50", "model.stem=released_8x8", "block=none", *SMALL[1:]]),
        ("mmaction2", ["model=c2d_r50", "model.stem=all_frames", "block=none", *SMALL[1:]]),
        pytest.param("pytorch_resnet3d", RN3D, marks=pytest.mark.slow),
    ],
)
def test_a_round_trip_is_bit_for_bit(tmp_path, project, config):
    """The names are also held against translations that were written by hand."""
    trained = trained_as(tmp_path, *config, zero_out_bias=project == "mmaction2")
    content, notes = foreign_content(trained, project)
    torch.save(content, tmp_path / "theirs.pth")
    again = read_trained(tmp_path / "theirs.pth")
    network, state = again.build_network(), trained.build_network().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network.state_dict().keys() == state.keys()
    ours, theirs = trained.config, again.config
    assert (ours.model.layout, ours.model.stem, ours.model.width) == (
        theirs.model.layout,
        theirs.model.stem,
        theirs.model.width,
    )
    if ours.block.kind != "none":
        keys = ("mode", "extent", "subsample", "pool", "scale", "norm", "group_frames")
        assert [getattr(ours.block, key) for key in keys] == [getattr(theirs.block, key) for key in keys]
    written = next((content[key] for key in ("model_state", "state_dict") if key in content), content)
    by_hand = {in_words_of(project, key) for key in state}
    if project == "pyslowfast" and ours.model.layout == "c2d":
        assert "ARCH: slow_c2d" in content["cfg"]  # the only name that its builder knows
    if not ours.block.subsample:
        by_hand = {key.replace("g.0.conv", "g.conv").replace("phi.0.conv", "phi.conv") for key in by_hand}
    if project == "mmaction2":
        by_hand = {key for key in by_hand if not key.endswith("conv_out.conv.bias")}
        assert again.classes == list("abcdefg")
    assert written.keys() == by_hand
    assert all(value.ndim == 4 for key, value in written.items() if "concat_project" in key)  # as in mmcv
    if project != "pytorch_resnet3d":
        assert (theirs.data.num_frames, theirs.data.frame_stride) == (8, 8)
        assert notes == ([] if project == "mmaction2" else [NAMES_LOST])


@torch.no_grad()
def test_biases_that_the_other_blocks_lack_or_have_leave_the_function_as_it_is(tmp_path):
    """mmcv has none before a norm; PySlowFast always has those of the convolutions."""
    clips = torch.randn(1, 3, 8, 32, 32)
    for project, config, said in (
        ("mmaction2", [*MMA, "block=nl5", "block.mode=dot_product", *SMALL], "5 biases before a norm, which"),
        ("pyslowfast", [*PSF, "block=nl1", "block.bias=false", *SMALL], "4 biases, which the project's blocks have"),
        ("mmaction2", [*MMA, "block=nl1", "block.bias=false", *SMALL], "3 biases, which the project's blocks have"),
    ):
        trained = trained_as(tmp_path, *config)
        content, notes = foreign_content(trained, project)
        torch.save(content, tmp_path / "theirs.pth")
        expected, found = trained.build_network().eval()(clips), load_model(tmp_path / "theirs.pth")(clips)
        assert (found - expected).norm() <= 1e-6 * expected.norm()
        assert said in notes[0] and notes[1:] == ([] if project == "mmaction2" else [NAMES_LOST])


@pytest.mark.parametrize(
    ("project", "config"), [("pyslowfast", [*PSF, "block=nl1"]), ("mmaction2", [*MMA[:2], "block=none"])]
)
def test_what_the_file_does_not_tell_is_said(tmp_path, project, config):
    """Rates and pictures; whether a video has several labels is told by both configs."""
    more = ["data.multi_label=true", "data.clip_fps=12.5", "data.crop_size=112", "data.scale_range=[128,160]"]
    trained = trained_as(tmp_path, *config, *SMALL, *more)
    content, (*_, note) = foreign_content(trained, project)
    assert note.endswith("data.clip_fps=12.5 (null), data.crop_size=112 (224), data.scale_range=[128,160] ([256,320])")
    torch.save(content, tmp_path / "theirs.pth")
    again = read_trained(tmp_path / "theirs.pth").config.data
    assert again.multi_label and (again.clip_fps, again.crop_size) == (None, 224)
    text = content["cfg"] if project == "pyslowfast" else content["meta"]["cfg"]
    assert ("HEAD_ACT: sigmoid" if project == "pyslowfast" else "'type': 'BCELossWithLogits'") in text


def test_a_2d_network_of_mmaction2_takes_frames_one_by_one(tmp_path):
    """As the config of its own C2D without temporal pooling, which starts from its tsn_r50.py."""
    trained = trained_as(tmp_path, "model=c2d_r50", "model.stem=all_frames", "block=none", *SMALL[1:])
    config: dict = {}
    exec(foreign_content(trained, "mmaction2")[0]["meta"]["cfg"], config)
    model = config["model"]
    assert (model["type"], model["backbone"]["type"]) == ("Recognizer2D", "ResNet")
    assert (model["cls_head"]["type"], model["cls_head"]["consensus"]["type"]) == ("TSNHead", "AvgConsensus")
    assert model["data_preprocessor"]["format_shape"] == "NCHW"


@pytest.mark.parametrize(
    ("project", "config", "message"),
    [
        ("pyslowfast", ["model=i3d_r50", "model.layout=i3d_333"], "PySlowFast has no model.layout=i3d_333; it has c2d"),
        ("pyslowfast", ["model=i3d_r50"], "PySlowFast has no model.stem=paper in this network; it has pyslowfast"),
        ("pyslowfast", [*PSF[:2], "block=gc5"], "PySlowFast has no block.kind=global_context; it has none, non_local"),
        ("pyslowfast", [*PSF, "block=nl1", "block.mode=gaussian", "block.scale=false"], "no block.mode=gaussian; it"),
        ("pyslowfast", [*PSF, "block=nl1", "block.scale=false"], "no block.scale=false in this network; it has true"),
        ("pyslowfast", [*PSF, "block=nl1", "block.pool=after"], "no block.pool=after in this network; it has before"),
        ("pyslowfast", [*PSF, "block=nl1", "block.norm=false"], "no block.norm=false; it has a norm at the end"),
        ("pyslowfast", [*PSF, "block=nl1", "block.extent=time"], "no block.extent=time in this network; it has space"),
        ("pyslowfast", [*PSF, "block=nl5", "+block.group_frames.res3=4"], "block.group_frames={res3: 4} in this"),
        ("pyslowfast", [*PSF, "block=nl5", "block.inside=true"], "no block.inside=true; it has its blocks behind the"),
        ("mmaction2", [*MMA, "block=nl5", "block.inside=true"], "no block.inside=true; it has its blocks behind the"),
        ("mmaction2", ["model=c2d_r50", "block=nl1"], "no block.kind=non_local; it has no blocks in its c2d"),
        ("mmaction2", ["model=i3d_r50", "model.stem=released_32x2"], "no model.stem=released_32x2 in this network"),
        ("pytorch_resnet3d", ["model=c2d_r50"], "pytorch-resnet3d has no model.layout=c2d; it has i3d"),
        ("pytorch_resnet3d", ["model=i3d_r101"], "no model.depth=101; it has 50"),
        ("pytorch_resnet3d", [*RN3D, "model.width=8"], "no model.width=8; it has 64"),
        ("pytorch_resnet3d", [*RN3D, "block=nl1"], "no block.places.r50=.res4.4.; it has .res3.1,res3.3,res4.1"),
    ],
)
def test_what_a_project_lacks_is_refused(tmp_path, project, config, message):
    small = [] if any("width" in item for item in config) else ["model.width=8"]
    if project == "pytorch_resnet3d" and "model.width=8" not in config:
        small = ["model.width=64"]
    with pytest.raises(UserError, match=message) as raised:
        foreign_content(trained_as(tmp_path, *small, *config), project)
    assert "\n" not in str(raised.value)


def test_the_command_says_what_a_file_cannot_tell(tmp_path, monkeypatch, capsys):
    trained_as(tmp_path, *PSF, "block=nl5", *SMALL)
    words = [tmp_path / "ours.pt", tmp_path / "theirs.pyth", "--to", "pyslowfast"]
    done = run_tool(TOOL, *words, monkeypatch=monkeypatch, capsys=capsys)
    said = f"{tmp_path}/theirs.pyth: PySlowFast weights, i3d R50\n  {NAMES_LOST}\n"
    assert done.returncode == 0 and done.stdout == said, done.stderr
    for more, message in (
        ([], "theirs.pyth exists already"),
        (["--classes", "x"], "--to pyslowfast: a checkpoint brings its config and classes; leave the others out"),
    ):
        target = tmp_path / ("theirs.pyth" if not more else "other.pyth")
        words = [tmp_path / "ours.pt", target, "--to", "pyslowfast", *more]
        done = run_tool(TOOL, *words, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_whose_weights_a_converted_checkpoint_has_is_recorded(tmp_path, monkeypatch, capsys):
    torch.save(foreign_content(trained_as(tmp_path, *PSF, "block=nl1", *SMALL), "pyslowfast")[0], tmp_path / "t.pyth")
    done = run_tool(TOOL, tmp_path / "t.pyth", tmp_path / "converted.pt", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 0 and read_trained(tmp_path / "converted.pt").origin == "PySlowFast weights"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    trained_as(tmp_path, *PSF, "block=nl1", *SMALL)
    monkeypatch.setattr("torch.save", torch_save_on_a_full_disk)
    words = [tmp_path / "ours.pt", tmp_path / "theirs.pyth", "--to", "pyslowfast"]
    done = run_tool(TOOL, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/theirs.pyth could not be written: No space left on device.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["ours.pt"]


def torch_save_on_a_full_disk(*_):
    """Raises what torch does: its own error, in whose context the disk's is."""
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672]")  # noqa: B904


def test_every_project_that_is_written_has_names_in_both_directions():
    assert {key for key, source in SOURCES.items() if source.names} == {*WRITTEN_PROJECTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "project", "override"),
    [
        pytest.param("pyslowfast_i3d_nln_8x8_r50", "pyslowfast", [], marks=pytest.mark.nightly),
        pytest.param(
            "mmaction2_i3d_imagenet_pretrained_r50_nl_dot_product",
            "mmaction2",
            ["block.mode=dot_product"],
            marks=pytest.mark.nightly,
        ),
        ("mmaction2_c2d_r50_8x8", "mmaction2", []),
        pytest.param("mmaction2_i3d_r50_nl_concatenation", "mmaction2", [], marks=pytest.mark.nightly),
        pytest.param("pytorch_resnet3d_i3d_r50_nl", "pytorch-resnet3d", [], marks=pytest.mark.nightly),
    ],
)
def test_the_rivals_weights_go_through_ours_and_back(tmp_path, name, project, override):
    """Rival's file, our checkpoint, a file for the rival: the same tensors, and its logits to 1e-6 of the first way."""
    folder = SHARED if name.startswith("pytorch") else PARITY
    if not (folder / f"{name}.json").is_file():
        pytest.skip(f"{folder} has no {name}")
    state = seeded_state(name, folder)
    wrapped = {"pyslowfast": "model_state", "mmaction2": "state_dict"}.get(project)
    torch.save({wrapped: state} if wrapped else state, tmp_path / "first.pth")
    for words in (["first.pth", "ours.pt", *override], ["ours.pt", "back.pth", "--to", project]):
        done = subprocess.run([sys.executable, TOOLS / TOOL, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    content = read_weights_file(tmp_path / "back.pth")
    back = content[wrapped] if wrapped else content
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) and back[key].shape == value.shape for key, value in state.items())
    expected = np.load(folder / f"{name}.npz")["logits"]
    clip = seeded_clip(json.loads((folder / f"{name}.json").read_text())["input"])
    with torch.inference_mode():
        first = load_model(tmp_path / "first.pth", config=override).position_logits(clip).numpy()
        found = load_model(tmp_path / "back.pth").position_logits(clip).numpy()
    np.testing.assert_array_equal(first, found)
    found = found.reshape(expected.shape)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
