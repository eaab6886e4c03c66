"""Which keys a command line states."""

import pytest
from conftest import composed
from omegaconf import OmegaConf

from nlvideo.config.compose import compose_stated
from nlvideo.config.stated_keys import is_stated


def stated(*overrides: str, name: str = "train") -> dict:
    return compose_stated(name, overrides)[1]


def test_what_the_programs_file_chooses_by_itself_is_not_stated():
    assert stated() == {}
    assert stated("seed=3", "data.root=x") == {"seed": 3, "data.root": "x"}


def test_a_chosen_file_states_its_keys_and_those_of_the_files_it_starts_from():
    assert stated("model=c2d_r101") == {"model.layout": "c2d", "model.depth": 101, "model.stem": "paper"}
    block = stated("block=gc5_mul")
    assert block["block.kind"] == "global_context" and block["block.fusion"] == "mul" and block["block.ratio"] == 4
    assert "block.mode" not in block


def test_an_experiment_states_the_groups_that_it_overrides():
    found = stated("experiment=i3d_r50_nl5_released", "+scale=small")
    assert found["model.stem"] == "released_32x2" and found["block.scale"] is True and found["model.width"] == 16
    assert found["precise_bn_steps"] == 200 and "data.num_frames" not in found
    assert stated("experiment=i3d_r50_nl5", "model=c2d_r50")["model.layout"] == "c2d"


def test_dicts_state_what_they_hold():
    found = stated("data.test={num_clips: 2}", "block.group_frames={}", "+block.places={r50: [res4.4]}")
    assert found == {"data.test.num_clips": 2, "block.group_frames": {}, "block.places.r50": ["res4.4"]}
    assert is_stated("block.places", found) and is_stated("data.test.num_clips", found)
    assert not is_stated("data.test.num_crops", found) and not is_stated("block.place", found)


def test_an_evaluation_states_too():
    found = stated("checkpoint=x", "data=synthetic", name="evaluate")
    assert found["data.num_frames"] == 16 and found["data.test.short_side"] == 72


@pytest.mark.parametrize("package", ["", "# @package _global_\n", "# @package block\n"])
def test_files_of_a_users_folder_are_read(tmp_path, package):
    content = {"kind": "none"} if "_global_" not in package else {"block": {"kind": "none"}}
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "mine.yaml").write_text(package + OmegaConf.to_yaml(content))
    assert stated(f"hydra.searchpath=[file://{tmp_path}]", "block=mine") == {"block.kind": "none"}


def test_a_composed_config_is_the_same_as_without():
    assert composed("data.root=x", "experiment=i3d_r50_nl5").name == "i3d_r50_nl5"
