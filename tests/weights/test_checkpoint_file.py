import shutil

import pytest
import torch

from nlvideo.training.resume import config_differences
from nlvideo.training.step_files import go_back_to, name_best, newest_checkpoint, save_step, step_file
from nlvideo.weights.checkpoint_file import load_checkpoint, save_checkpoint

CONTENT = {"model": {"w": torch.arange(3.0)}, "step": 5, "config": {"seed": 0}, "classes": ["a"]}


def test_a_checkpoint_is_plain_and_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c.pt", CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    plain = torch.load(tmp_path / "c.pt", weights_only=True)
    assert {"model", "step", "config", "classes"} <= plain.keys()
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["model"]["w"], CONTENT["model"]["w"]) and loaded["step"] == 5


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pt", CONTENT)

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "c.pt", CONTENT | {"step": 6})
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 5


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    torch.save(CONTENT | {"format": 99}, tmp_path / "newer.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    for name, message in (
        ("text.pt", "is not a checkpoint that can be read"),
        ("other.pt", "is not an nlvideo checkpoint: it holds state_dict; expected format, sha256, model, step"),
        ("newer.pt", "was written by a newer nlvideo"),
        ("tensor.pt", "it holds Tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing.pt does not exist"):
        load_checkpoint(tmp_path / "missing.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    save_checkpoint(tmp_path / "c.pt", CONTENT)
    data = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="c.pt is not a checkpoint that can be read"):
        load_checkpoint(tmp_path / "c.pt")


def test_config_differences_are_named():
    old = {"a": 1, "b": {"c": [1], "d": None}}
    assert config_differences(old, old) == []
    assert config_differences(old, {"a": 2, "b": {"c": [1], "d": 3}}) == ["a: 1 -> 2", "b.d: None -> 3"]


def test_a_read_error_says_nothing_about_the_file(tmp_path, monkeypatch):
    for step in (1, 2):
        save_step(tmp_path, CONTENT | {"step": step}, keep=2)

    def unreachable(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", unreachable)
        with pytest.raises(OSError, match="Input/output error"):
            newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path).content["step"] == 2


def test_damaged_steps_are_set_aside_and_other_names_are_none(tmp_path):
    for step in (1, 2):
        save_step(tmp_path, CONTENT | {"step": step}, keep=2)
    (tmp_path / "checkpoints/step_copy.pt").write_text("mine")
    data = bytearray(step_file(tmp_path, 2).read_bytes())
    data[data.index(torch.arange(3.0).numpy().tobytes()) + 1] ^= 4
    step_file(tmp_path, 2).write_bytes(data)
    found = newest_checkpoint(tmp_path)
    assert found.content["step"] == 1 and "is corrupt: its content does not match its SHA-256" in found.skipped[0]
    go_back_to(tmp_path, 1)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000001.pt", "step_00000002.damaged", "step_copy.pt"}
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


def test_a_run_goes_on_from_its_newest_checkpoint_alone(tmp_path):
    save_step(tmp_path, CONTENT, keep=1)
    shutil.rmtree(tmp_path / "checkpoints")
    assert newest_checkpoint(tmp_path).content["step"] == 5
    go_back_to(tmp_path, 5)
    name_best(tmp_path, 5)
    assert load_checkpoint(tmp_path / "checkpoint_best.pt")["step"] == 5
