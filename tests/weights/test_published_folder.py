"""What a published folder of others may state: what its network computes and nothing else, with any SHA-256."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import composed
from runs import TINY

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.runtime.errors import UserError
from nlvideo.weights import published
from nlvideo.weights.adoption import take_from_pretrained
from nlvideo.weights.checkpoint_file import digest, save_checkpoint
from nlvideo.weights.trained_network import load_model, read_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A published network whose weights could also be those of an I3D of another project."""
    made = tmp_path_factory.mktemp("published") / "network"
    made.mkdir()
    config = composed(*TINY, "block=none", "data.root=/home/jane")
    state = build_model(config.model, config.block, config.data, 3).state_dict()
    content = {"config": published.published_values(config), "step": 3, "classes": ["a", "b", "c"], "state": state}
    published.write_network(made, content | {"precise": False, "checkpoint_sha256": "0"})
    return made


def changed(folder: Path, target: Path, name: str, value: object) -> Path:
    """Returns a copy with another value of a key in config.json, and with the SHA-256 of what it holds then."""
    shutil.copytree(folder, target)
    described = json.loads((folder / "config.json").read_text())
    *path, key = name.split(".")
    node = described
    for part in path:
        node = node[part]
    node[key] = value
    state = safetensors.torch.load_file(folder / "model.safetensors")
    try:
        described["sha256"] = digest(published._checkpoint(described, ["a", "b", "c"], state))
    except (TypeError, RecursionError):  # refused before it is compared
        pass
    (target / "config.json").write_text(json.dumps(described))
    return target


def test_a_changed_folder_is_read_where_the_change_is_one_of_what_it_computes(folder, tmp_path):
    """So that the refusals below are no matter of the SHA-256."""
    assert read_trained(changed(folder, tmp_path / "moved", "data.test.num_clips", 7)).config.data.test.num_clips == 7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.root", "/etc", "config.json states 'data.root', which no published network does; it is not read"),
        ("data.root", "http://127.0.0.1/x", "states 'data.root'"),
        ("data.classes", "http://127.0.0.1/x", "states 'data.classes'"),
        ("data.val", "s3://bucket/val.csv", "states 'data.val'"),
        ("data.videos", "x", "states 'data.videos'"),
        ("data.index", "/elsewhere", "states 'data.index'"),
        ("data.cache_dir", "/elsewhere", "states 'data.cache_dir'"),
        ("data.synthetic", {"kind": "motions"}, "states 'data.synthetic'"),
        ("data.decoder", "decord", "states 'data.decoder'"),
        ("data.unknown", 1, "states 'data.unknown'"),
        ("data.test.more", 1, "states 'data.test.more'"),
        ("model.pretrained", "/etc/passwd", "states 'model.pretrained'"),
        ("model", [1], "states 'model'"),
        ("data.test", None, "states 'data.test'"),
        ("data.mean", "${oc.env:HOME}", "a reference"),
        ("model.width", "x", "moved: Value 'x' of type 'str' could not be converted to Integer; full_key: model.width"),
        ("model.width", 8, "moved: its weights are not those of its config, which has model.width=8"),
        ("model.width", 10**7, "its weights are not those of its config"),  # no machine has memory for it
        ("model.layout", "c2d", r"conv1.weight has the shape \(4, 3, 5, 7, 7\), by the config \(4, 3, 1, 7, 7\)"),
        ("model.depth", 101, "its weights are not those of its config: layer3.10.bn1.bias, .* are in one of the two"),
        (
            "data.test.num_clips",
            10**9,
            "moved: data.test.num_clips=1000000000 is outside 1 to 1000, which no network needs",
        ),
        ("data.num_frames", 10**5, "moved: data.num_frames=100000 is outside 1 to 4096"),
        ("block.places", {"r50": ["res3.1"] * 10**5}, "block.places.r50 has 100000 places; no network has over 33"),
        ("step", "x", "config.json: step='x' is not what tools/publish_model.py writes"),
        ("step", -5, "step=-5 is not"),
        ("step", True, "step=True is not"),
        ("num_classes", 3.0, "num_classes=3.0 is not"),
        ("nlvideo_format", 0, "nlvideo_format=0 is not"),
        ("batch_norm", "x", "batch_norm='x' is not"),
    ],
)
def test_what_no_published_network_states_is_refused_in_one_line(folder, tmp_path, name, value, message):
    with pytest.raises(UserError, match=message) as raised:
        load_model(changed(folder, tmp_path / "moved", name, value))
    assert "\n" not in str(raised.value)


def test_a_config_that_is_nested_without_end_is_one_line(folder, tmp_path):
    nested: dict = {}
    for _ in range(400):
        nested = {"a": nested}
    for name in ("data.more", "block"):
        with pytest.raises(UserError, match=r"config.json states .(data.more|block.a)"):
            published.published_config(changed(folder, tmp_path / name, name, nested) / "config.json")


def test_classes_that_share_a_name_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved/classes.json").write_text('["a", "b", "a"]')
    with pytest.raises(UserError, match="moved/classes.json: the class 'a' is named 2 times"):
        read_trained(tmp_path / "moved")


def test_half_a_folder_says_what_it_lacks(folder, tmp_path):
    for left_out in ("config.json", "classes.json", "model.safetensors"):
        half = tmp_path / left_out.partition(".")[0]
        shutil.copytree(folder, half)
        (half / left_out).unlink()
        with pytest.raises(UserError, match=f"{half.name} lacks {left_out} of a published network's files"):
            read_trained(half)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is neither a run's folder, with checkpoint.pt, nor a published network"):
        read_trained(tmp_path / "empty")


def test_its_weights_alone_are_not_taken_for_those_of_another_project(folder, tmp_path):
    """Without blocks, their names are those of pytorch-resnet3d, whose stem is another one."""
    shutil.copy(folder / "model.safetensors", tmp_path / "renamed.safetensors")
    for file in (folder / "model.safetensors", tmp_path / "renamed.safetensors"):
        with pytest.raises(
            UserError, match=f"{file.name} holds a published network's weights alone, .* give its folder"
        ):
            load_model(file)


def test_a_run_does_not_start_from_weights_whose_config_is_not_theirs(folder, tmp_path):
    """The network is built by the config before it is filled."""
    trained = read_trained(folder)
    content = copy.deepcopy(trained.content)
    content["config"]["model"]["width"] = 10**7
    save_checkpoint(tmp_path / "wide.pt", {key: content[key] for key in ("model", "step", "config", "classes")})
    config = composed("data.root=x", f"model.pretrained={tmp_path}/wide.pt")
    with pytest.raises(UserError, match="wide.pt: its weights are not those of its config, which has model.width=10"):
        take_from_pretrained(config, {})
    with pytest.raises(UserError, match="wide.pt: its weights are not those of its config"):
        load_model(tmp_path / "wide.pt")


def test_the_values_that_are_published_make_the_same_network(folder):
    """As many as the config has of them, and no place among them."""
    values = published.published_values(composed(*TINY, "block=nl1", "data.root=/home/jane"))
    assert values["data"].keys() == {
        *("mean", "std", "num_frames", "frame_stride", "clip_fps", "crop_size", "scale_range", "multi_label", "test")
    }
    assert values["model"].keys() == {"layout", "depth", "width", "stem"}
    assert values["block"] == to_container(composed(*TINY, "block=nl1", "data.root=x").block)
    assert torch.equal(
        load_model(folder).fc.weight, safetensors.torch.load_file(folder / "model.safetensors")["fc.weight"]
    )
