"""A checkpoint of ours brings its function along, and the command line wins."""

import pytest
import torch
from conftest import composed
from in_process import run_main
from omegaconf import OmegaConf
from runs import TINY

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_stated, to_container, to_dataclass
from nlvideo.train import main as train_main
from nlvideo.weights.adoption import take_from_pretrained
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.pretrained import load_pretrained

BEFORE = [
    "model=slow_r50",
    "block=nl5",
    "block.extent=space",
    "block.scale=true",
    "model.width=8",
    "model.frozen_bn=true",
    "data.num_frames=8",
    "data.frame_stride=8",
    "data.clip_fps=25",
    "data.mean=[0.5,0.5,0.5]",
    "data.crop_size=112",
    "data.scale_range=[128,160]",
    "data.test.short_side=128",
    "data.test.crop_size=128",
    "data.test.num_clips=7",
]
PICTURES = {"crop_size": 112, "scale_range": [128, 160]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("before") / "checkpoint.pt", BEFORE, ["a", "b", "c"])


def saved(path, overrides, classes):
    made = composed("data.root=elsewhere", *overrides)
    network = build_model(made.model, made.block, made.data, len(classes))
    content = {"model": network.state_dict(), "step": 3, "config": to_container(made), "classes": classes}
    save_checkpoint(path, content)
    return path


def taken(checkpoint, *overrides, begun=None):
    config, stated = compose_stated("train", ["data.root=x", f"model.pretrained={checkpoint}", *overrides])
    return take_from_pretrained(to_dataclass(config), stated, begun)


def line_of(config, classes=("a", "b", "c")) -> str:
    return load_pretrained(
        build_model(config.model, config.block, config.data, len(classes)), config, list(classes)
    ).sentence


def test_everything_that_makes_the_function_is_taken_and_nothing_else(checkpoint):
    config, before = taken(checkpoint), composed("data.root=x", *BEFORE)
    assert config.block == before.block and config.model.width == 8 and config.model.layout == "slow"
    assert config.model.stem == "all_frames" and not config.model.frozen_bn
    for name in ("num_frames", "frame_stride", "clip_fps", "mean", "std", *PICTURES):
        assert getattr(config.data, name) == getattr(before.data, name), name
    assert (config.data.test.short_side, config.data.test.crop_size) == (128, 128)
    assert config.data.test.num_clips == 10 and config.data.root == "x"
    assert line_of(config).endswith("nlvideo checkpoint; its head kept; no new blocks")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.num_frames=16", "data.num_frames=16 (checkpoint: 8)"),
        ("data.clip_fps=null", "data.clip_fps=null (checkpoint: 25.0)"),
        ("data.mean=[0,0,0]", "data.mean=[0.0,0.0,0.0] (checkpoint: [0.5,0.5,0.5])"),
        ("block.scale=false", "block.scale=false (checkpoint: true)"),
        ("block.mode=dot_product", "block.mode=dot_product (checkpoint: embedded_gaussian)"),
        ("block.extent=spacetime", "block.extent=spacetime (checkpoint: space)"),
        ("model.stem=released_8x8", "model.stem=released_8x8 (checkpoint: all_frames)"),
        ("block=nl10", "block.places.r50=[res3.0,res3.1,"),
    ],
)
def test_the_command_line_wins_and_what_differs_is_named(checkpoint, override, said):
    config = taken(checkpoint, override)
    assert said in line_of(config).partition("; differs: ")[2]
    assert config.data.frame_stride == 8 and config.block.kind == "non_local"


def test_pictures_are_taken_together_or_not_at_all(checkpoint):
    config = taken(checkpoint, "data.test.short_side=256")
    assert (config.data.crop_size, config.data.scale_range) == (224, [256, 320])
    assert config.data.test.crop_size == 256 and config.data.num_frames == 8


def test_another_layout_keeps_its_own_stem(tmp_path):
    path = saved(tmp_path / "c2d.pt", ["model=c2d_r50", "model.stem=released_8x8", "model.width=8"], ["a", "b"])
    config = taken(path, "model.layout=i3d")
    assert config.model.stem == "paper" and config.model.width == 8
    assert "differs: model.layout=i3d (checkpoint: c2d), model.stem=paper (checkpoint: released_8x8)" in line_of(config)


@pytest.mark.parametrize("override", ["experiment=c2d_r50_nl5", "block=nl5"])
def test_new_blocks_into_a_trained_baseline(tmp_path, override):
    path = saved(tmp_path / "c2d.pt", ["experiment=c2d_r50", "model.width=8"], ["a", "b", "c"])
    config = taken(path, override, f"model.pretrained={path}")
    assert len(config.block.places["r50"]) == 5 and config.model.layout == "c2d" and config.model.width == 8
    line = line_of(config)
    assert "its head kept; 5 new blocks" in line and "block.kind=non_local (checkpoint: none)" in line


def test_another_kind_of_block_has_its_own_options_and_no_place_for_the_checkpoints(checkpoint):
    for override, has in (
        ("block=gc5", "global_context blocks after res3.1"),
        ("block=none", "no blocks"),
        ("block.kind=none", "no blocks"),
        ("+block.places.r50=[res3.1,res3.3]", "non_local blocks after res3.1, res3.3"),
        ("block.inside=true", "block.inside=true"),
    ):
        with pytest.raises(ValueError, match="which have no place here: this network has ") as error:
            taken(checkpoint, override)
        assert has in str(error.value) and "\n" not in str(error.value)
        assert "block.places.r50=[res3.1,res3.3,res4.1,res4.3,res4.5]" in str(error.value)


def test_another_mode_of_a_named_block_brings_its_own_options(checkpoint):
    config = taken(checkpoint, "block=nl5", "block.mode=dot_product")
    assert (config.block.extent, config.block.scale) == ("spacetime", False)


def test_a_resumed_run_keeps_what_it_took_when_the_file_is_gone(checkpoint):
    begun = to_container(taken(checkpoint))
    for overrides in ([], ["model.pretrained=null"]):
        config = taken("gone.pt", *overrides, begun=begun)
        assert config.block.extent == "space" and config.data.num_frames == 8
    plain = to_container(composed("data.root=x", "data.num_frames=4"))
    assert taken("gone.pt", "model.pretrained=null", begun=plain).data.num_frames == 32


def test_imagenet_brings_nothing():
    config, stated = compose_stated("train", ["data.root=x", "model.pretrained=imagenet", "data.mean=[0,0,0]"])
    assert take_from_pretrained(to_dataclass(config), stated) == to_dataclass(config)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["a", "b", "c"], ["a", "b", "c"], "its head kept"),
        (["a", "b", "c"], ["b", "a", "c"], "(the checkpoint has the same classes in another order)"),
        (["a", "b", "c"], ["a", "b", "d"], "a new head for 3 classes (the checkpoint has 3 other classes)"),
        (["0", "1", "2"], ["0", "1", "2"], "a new head for 3 classes (the 3 classes of the checkpoint have no names)"),
        (["a", "b", "c"], ["0", "1", "2"], "a new head for 3 classes (which have no names)"),
    ],
)
def test_a_head_is_kept_only_where_the_names_agree(tmp_path, before, now, said):
    config = taken(saved(tmp_path / "c.pt", ["model=c2d_r50", "model.width=4"], before))
    assert said in line_of(config, now)


def test_a_damaged_checkpoint_is_refused_when_its_weights_are_read(tmp_path):
    path = saved(tmp_path / "c.pt", ["model=c2d_r50", "model.width=4"], ["a", "b"])
    content = torch.load(path, weights_only=True)
    content["model"]["fc.bias"] += 1
    torch.save(content, path)
    config = taken(path)
    with pytest.raises(ValueError, match="model.pretrained: .*c.pt is corrupt"):
        line_of(config)
    with pytest.raises(FileNotFoundError, match="model.pretrained: .*nowhere.pt does not exist"):
        taken(tmp_path / "nowhere.pt")


def test_a_run_takes_over_resumes_without_the_file_and_is_refused_before_it_writes(
    video_folder, tmp_path, monkeypatch, capsys
):
    def run(*overrides):
        words = [*TINY, f"data.root={video_folder}", "optim.max_steps=1", *overrides]
        return run_main(train_main, *words, monkeypatch=monkeypatch, capsys=capsys)

    options = [*TINY, "block.extent=space", "model.stem=pyslowfast"]
    path = saved(tmp_path / "before.pt", options, ["a", "b", "c"])
    refused = run(f"model.pretrained={path}", f"output_dir={tmp_path}/none", "block=none")
    assert refused.returncode == 1 and "which have no place here" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "none").exists()

    given = f"model.pretrained={path}", f"output_dir={tmp_path}/run"
    done = run(*given)
    assert done.returncode == 0, done.stderr
    (network,) = [line for line in done.stdout.splitlines() if line.startswith("network")]
    assert "differs: model.stem=paper (checkpoint: pyslowfast)" in network  # the experiment states it, not the extent
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").block.extent == "space"
    path.unlink()
    again = run(*given, "resume=auto")
    assert again.returncode == 0 and "resumed after step 1" in again.stdout, again.stderr
