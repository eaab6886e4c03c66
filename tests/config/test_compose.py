import functools
import re
from pathlib import Path

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.models.global_context import FUSIONS, POOLINGS
from nlvideo.models.non_local import EXTENTS, INITS, MODES, POOLS
from nlvideo.runtime.errors import UserError

EXPERIMENTS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs" / "experiment").glob("*.yaml"))
BLOCKS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs" / "block").glob("*.yaml"))
DATA_SETS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
MODELS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


def built(config: TrainConfig):
    with torch.device("meta"):
        return build_model(config.model, config.block, config.data, 10)


def number_of_blocks(name: str, depth: int) -> int:
    if "_all" in name:
        return {50: 13, 101: 30}[depth]
    return next((int(n) for n in (10, 5, 1) if re.search(rf"(^|_)(nl|snl|gc|se){n}(_|$)", name)), 0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds(name):
    config = composed(f"experiment={name}", "data.root=somewhere", "model.pretrained=null")
    network = built(config)
    assert config.name == name and config.output_dir == f"outputs/{name}"
    assert len(network.places) == (5 if name.startswith("quickstart") else number_of_blocks(name, 50))


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_says_all_that_tells_it_from_others(name):
    """So that one that is chosen for an evaluation takes nothing over from the set that was trained on."""
    stated = OmegaConf.load(Path(__file__).parents[2] / "configs" / "data" / f"{name}.yaml")
    assert {"format", "videos", "train", "val", "classes", "synthetic"} <= stated.keys()
    config = composed(f"data={name}", "data.root=somewhere")
    assert config.data.is_multi_label == (name in ("charades", "synthetic_actions"))


@pytest.mark.parametrize(
    ("model", "block"),
    sorted(
        {*((model, block) for model in ("c2d_r101", "slow_r50") for block in BLOCKS), *((m, "nl10") for m in MODELS)}
    ),
)
def test_every_block_fits_every_model(model, block):
    frames = 8 if "8x8" in model or "slow" in model else 32
    network = built(composed(f"model={model}", f"block={block}", "data.root=x", f"data.num_frames={frames}"))
    assert len(network.places) == number_of_blocks(block, 101 if "r101" in model else 50)


@functools.cache
def named_block(name: str):
    return composed("data.root=x", f"block={name}").block


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("mode", MODES),
        ("extent", EXTENTS),
        ("pool", POOLS),
        ("init", INITS),
        ("pooling", POOLINGS),
        ("fusion", FUSIONS),
        *((flag, (True, False)) for flag in ("subsample", "scale", "bias", "norm", "inside")),
    ],
)
def test_every_variant_of_a_block_is_used_by_a_named_config(option, choices):
    used = {getattr(named_block(name), option) for name in BLOCKS}
    assert used == set(choices)


def test_every_experiment_says_its_command_its_cost_and_what_to_expect():
    for name in EXPERIMENTS:
        text = (Path(__file__).parents[2] / "configs" / "experiment" / f"{name}.yaml").read_text()
        assert f"experiment={name}" in text and "# Cost: " in text and "# Expected" in text


def test_the_default_is_the_papers_recipe():
    optim = composed("data.root=x").optim
    assert (optim.lr, optim.lr_batch_size, optim.batch_size, optim.max_steps) == (0.01, 64, 64, 400_000)
    assert optim.milestones == [150_000, 300_000] and optim.momentum == 0.9 and optim.nesterov
    assert optim.weight_decay == 1e-4
    data = composed("data.root=x").data
    assert (data.num_frames, data.frame_stride, data.scale_range, data.crop_size) == (32, 2, [256, 320], 224)
    assert (data.test.num_clips, data.test.num_crops, data.test.short_side) == (10, 3, 256)


def test_a_config_survives_the_way_through_a_checkpoint(tmp_path):
    config = composed("experiment=quickstart", "seed=7", "data.test.num_clips=2")
    torch.save({"config": to_container(config)}, tmp_path / "c.pt")
    assert from_container(TrainConfig, torch.load(tmp_path / "c.pt", weights_only=True)["config"]) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=int8", "precision=int8: choose from auto, float32, bfloat16, float16, float64"),
        ("resume=yes_please", "resume=yes_please: choose from never, auto"),
        ("optim.schedule=linear", "optim.schedule=linear: choose from steps, cosine"),
        ("data.test.clip_sampling=dense", "data.test.clip_sampling=dense: choose from uniform, vnl"),
        ("data.test.num_crops=5", "data.test.num_crops=5: choose from 1, 3"),
        ("data.num_frames=0", "data.num_frames=0: must be at least 1"),
        ("optim.lr=-1", "optim.lr=-1.0: must be a number that is not negative"),
        ("model.dropout=1.5", "model.dropout=1.5: must be at least 0 and below 1"),
        ("data.scale_range=[200,256]", r"data.scale_range=\[200, 256\]: .* neither below data.crop_size=224"),
        ("data.scale_range=[256]", r"data.scale_range=\[256\]"),
        ("data.test.crop_size=300", "data.test.crop_size=300: must be at least 1 and not exceed"),
        ("data.crop_size=257", "data.crop_size=257"),
        ("data.mean=[0.5]", r"data.mean=\[0.5\]: must be three numbers"),
        ("num_devices=3", "optim.batch_size=64 cannot be divided evenly among num_devices=3"),
        ("optim.milestones=[5,2]", r"optim.milestones=\[5, 2\]: must be rising"),
        ("optim.momentum=0", "optim.nesterov=true needs a momentum"),
        ("+model.dpeth=101", "model.dpeth=101 is not a key. Choose from: activation_checkpointing, depth, "),
    ],
)
def test_wrong_values_are_refused_with_key_value_and_choices(override, message):
    with pytest.raises(ValueError, match=message):
        composed("data.root=x", override)


def test_a_missing_root_is_asked_for():
    with pytest.raises(ValueError, match="data.root has no value; give it as data.root=..."):
        composed()


def test_places_can_be_given_on_the_command_line():
    config = composed("data.root=x", "block=nl1", "block.places.r50=[res2.1,res5.1]")
    assert built(config).places == ("res2.1", "res5.1")


def test_group_files_add_no_keys():
    """A group file's values are typed by the schema: none may add a key."""
    known = OmegaConf.to_container(OmegaConf.structured(TrainConfig), throw_on_missing=False)
    root = Path(__file__).parents[2] / "configs"
    for path in root.glob("*/*.yaml"):
        group = path.parent.name
        if group in known:
            keys = set(OmegaConf.load(path)) - {"defaults"}
            assert keys <= set(known[group]), path


def test_settings_of_long_range_are_refused_for_other_sets_and_checked():
    for overrides, message in (
        (["data=short_range", "data.synthetic.gap_frames=4"], "gap_frames=4 has no effect on kind=short_range"),
        (["data=long_range", "data.synthetic.gap_frames=23"], "must be at least 1 and leave two or more"),
        (["data=long_range", "data.synthetic.distance=0.7"], "must be from 0 to 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            composed(*overrides)


def test_a_stored_config_cannot_read_the_environment(monkeypatch):
    """Nor anything else that a reference leads to: other people's checkpoints hold configs too."""
    monkeypatch.setenv("A_SECRET", "secret")
    stored = to_container(composed("data.root=none"))
    stored["data"]["root"] = "http://host/${oc.env:A_SECRET}"
    with pytest.raises(UserError, match="holds a reference"):
        from_container(TrainConfig, stored)
