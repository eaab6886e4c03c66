"""Files of others ask for no more frames, pixels and views than networks that someone trained."""

import copy

import pytest
from conftest import composed
from other_projects import to_pyslowfast
from runs import TINY

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.runtime.errors import UserError
from nlvideo.weights.bounds import check_bounds, check_stored, distinct_names
from nlvideo.weights.checkpoint_file import check_content, save_checkpoint
from nlvideo.weights.foreign_metadata import metadata_values
from nlvideo.weights.importers import import_weights
from nlvideo.weights.trained_network import load_model
from nlvideo.weights.weights_file import read_weights

HONEST = {"data.num_frames": 64, "data.test.num_clips": 10, "data.test.short_side": 256}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.num_frames": 10**9}, "data.num_frames=1000000000 is outside 1 to 4096, which no network needs"),
        ({"data.num_frames": "1000000000"}, "data.num_frames=1000000000 is outside"),  # a config makes a number of it
        ({"data.num_frames": 10**5000}, "data.num_frames=1e20 or more is outside"),
        ({"data.num_frames": "9" * 10000}, "data.num_frames=99999999999999999999... is outside"),
        ({"data.frame_stride": 10**9}, "data.frame_stride=1000000000 is outside 1 to 4096"),
        ({"data.clip_fps": 1e9}, "data.clip_fps=1000000000.0 is outside 0.001 to 1000"),
        ({"data.clip_fps": float("nan")}, "data.clip_fps=nan is outside"),
        ({"data.test.num_clips": 10**6}, "data.test.num_clips=1000000 is outside 1 to 1000"),
        ({"data.test.short_side": 10**6}, "data.test.short_side=1000000 is outside 1 to 2048"),
        ({"data.test.crop_size": 10**6}, "data.test.crop_size=1000000 is outside"),
        ({"data.crop_size": 10**6}, "data.crop_size=1000000 is outside"),
        ({"data.scale_range": [256, 10**6]}, "data.scale_range=1000000 is outside"),
        (
            {"data.num_frames": 4096, "data.test.short_side": 2048},
            "data.num_frames=4096 of .*=2048, 10 times, are more",
        ),
        ({"data.test.num_clips": 1000, "data.test.short_side": 512}, "=64 of .*=512, 1000 times, are more pixels than"),
        ({"block.places": {"r50": ["res3.1"] * 34}}, "block.places.r50 has 34 places; no network has over 33"),
        ({"block.places": {f"r{k}": ["res3.1"] for k in range(1000)}}, "its config has 19.* characters, which no"),
        ({"block.mode": "x" * 10**6}, "its config has 1000.* characters, which no network needs"),
    ],
)
def test_what_no_network_needs_is_one_short_line(values, message):
    with pytest.raises(UserError, match=message) as raised:
        check_bounds(HONEST | values)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=i3d_r50_nl5"],
        ["experiment=i3d_r50_nl5", "model.depth=101", "data.num_frames=128", "data.test.num_clips=30"],
        ["data.num_frames=1024", "data.test={num_clips: 1, short_side: 512, crop_size: null, num_crops: 1}"],
        ["data.test.num_clips=1000", "data.clip_fps=0.01", "data.frame_stride=1000"],
    ],
)
def test_what_networks_need_is_taken(overrides):
    config = to_container(composed("data.root=x", *overrides))
    check_stored(config)
    config["block"]["places"] = {"r101": [f"res4.{i}" for i in range(33)]}
    check_stored(config)


def test_values_that_no_config_has_are_left_to_the_config():
    check_bounds({"data.num_frames": None, "data.crop_size": "x", "data.scale_range": {"a": 10**9}, "block.places": 3})


@pytest.mark.parametrize(("names", "twice"), [(["a", "b", "a"], "'a'"), (["", ""], "''"), ([1, "1"], "'1'")])
def test_classes_that_share_a_name_are_refused(names, twice):
    with pytest.raises(UserError, match=f"the class {twice} is named 2 times"):
        distinct_names(names)


@pytest.mark.parametrize("read", [load_model, read_weights, lambda file: read_weights(file, lazily=True)])
def test_checkpoints_are_held_to_them(read, tmp_path):
    """Whether they are evaluated or started from."""
    config = composed(*TINY, "data.root=x")
    content = {"model": build_model(config.model, config.block, config.data, 3).state_dict(), "step": 1}
    content |= {"config": to_container(config), "classes": ["a", "b", "c"]}
    save_checkpoint(tmp_path / "honest.pt", content)
    read(tmp_path / "honest.pt")
    content = copy.deepcopy(content)
    content["config"]["data"]["num_frames"] = 10**5
    save_checkpoint(tmp_path / "greedy.pt", content)
    with pytest.raises(UserError, match=r"greedy.pt: data.num_frames=100000 is outside 1 to 4096"):
        read(tmp_path / "greedy.pt")


def test_other_projects_files_are_held_to_them():
    config = composed(*TINY, "block=none", "data.root=x")
    state = build_model(config.model, config.block, config.data, 3).state_dict()
    state = {to_pyslowfast(key): value for key, value in state.items()}
    import_weights({"model_state": state, "cfg": "DATA: {NUM_FRAMES: 64}"}, "pyslowfast")
    with pytest.raises(UserError, match="data.num_frames=100000 is outside 1 to 4096"):
        import_weights({"model_state": state, "cfg": "DATA: {NUM_FRAMES: 100000}"}, "pyslowfast")


def test_what_is_nested_without_end_is_one_line():
    nested: list = []
    for _ in range(900):
        nested = [nested]
    with pytest.raises(UserError, match="its config is nested too deeply"):
        check_stored({"data": {"mean": nested}})
    for _ in range(3000):
        nested = [nested]
    content = {"format": 2, "model": {}, "step": 1, "config": {}, "classes": nested, "sha256": "0"}
    with pytest.raises(UserError, match="deep.pt is no checkpoint of ours: it is nested too deeply"):
        check_content(content, "deep.pt")
    assert metadata_values("pyslowfast", {"cfg": "[" * 5000 + "]" * 5000}) == {}
    assert metadata_values("pyslowfast", {"cfg": "DATA: {NUM_FRAMES: 2001-99-99}"}) == {}
