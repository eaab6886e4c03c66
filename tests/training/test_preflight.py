import os
import re
import shutil

import pytest
import torch
from conftest import composed
from runs import config_of

from nlvideo.build.model import build_model
from nlvideo.models.cost import activation_bytes, cost_table, count_cost
from nlvideo.train import train
from nlvideo.training import dry_run, preflight


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(video_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = (video_folder / "train.csv").read_text() + "train/gone.mp4 2\n"
    (tmp_path / "list.csv").write_text(rows)
    options = ["dry_run=true", f"data.train={tmp_path}/list.csv", "data.balance=sqrt"]
    train(config_of(video_folder, tmp_path / "run", *options))
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists() and sorted(os.listdir(tmp_path)) == ["list.csv"]
    note = "list.csv: no header, separated by spaces; 7 videos of 3 classes (labels are numbers); missing files: 1"
    assert f"          {note} (train/gone.mp4)" in out
    assert "classes   2 to 3 videos a class, ratio 1.5; data.balance=sqrt draws them 2.2 to 2.7 times an epoch" in out
    assert re.search(r"block at res4.4 +│ 1 x 2 x 2 x 64 +│ 0\.\d{3} +│ 0\.000", out)
    assert re.search(r"train +│ 7 +│ 3 +│ 1, first .*gone.mp4 +│ [0-9a-f]{16}", out)
    assert "lr        0.0025 = 0.02 x 2/16" in out and "norm      over the 2 clips of a micro-batch" in out
    for what in ("GB predicted: weights,", "memory, measured", "shared memory", "CPU cores", "the whole run"):
        assert what in out
    assert re.search(r"steps per epoch +│ 3.5", out) and "Dry run: nothing was written to" in out


def test_a_dry_run_refuses_what_a_run_would(video_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv does not exist"):
        train(config_of(video_folder, tmp_path / "run", "dry_run=true", "data.train=nothing.csv"))
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=1"))
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(config_of(video_folder, tmp_path / "run", "dry_run=true"))


def test_a_dry_run_refuses_a_batch_that_the_device_has_no_memory_for(video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "free_memory", lambda _: 1_000_000)
    with pytest.raises(ValueError, match="a micro-batch of 2 clips needs at least 0.0 GB, and this device has"):
        train(config_of(video_folder, tmp_path / "run", "dry_run=true"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output_dir=/proc/nlvideo"], r"output_dir=/proc/nlvideo cannot be written: .* \(/proc\)"),
        (["output_dir=/dev/null/run"], r"output_dir=/dev/null/run: /dev/null is a file, not a folder"),
        (["sync_bn=true"], "sync_bn=true: PyTorch has synchronised batch norm for CUDA only"),
        (["cuda_graph=true"], "cuda_graph=true: only NVIDIA GPUs have CUDA graphs"),
        (["tf32=true"], "tf32=true: only NVIDIA GPUs from Ampere on have TF32"),
        (["optim.accumulate=3", "optim.batch_size=4"], "must be a multiple of 3"),
        (["model.frozen_bn=true", "precise_bn_steps=5"], "precise_bn_steps=5 has no effect with model.frozen_bn=true"),
        (["model.activation_checkpointing=[res1]"], "activation_checkpointing=res1: choose from res2, res3, res4"),
        (["compile=true", "model.activation_checkpointing=[res2]"], "does not go together with compile=true"),
        (["cuda_graph=true", "compile=true"], "cuda_graph=true does not go together with compile=true"),
        (["cuda_graph=true", "sync_bn=true"], "cuda_graph=true does not go together with sync_bn=true"),
        (["cuda_graph=true", "model.activation_checkpointing=[res2]"], r"activation_checkpointing=\['res2'\]: a rec"),
        (["cuda_graph=true", "optim.accumulate=2"], "cuda_graph=true does not go together with optim.accumulate=2"),
        (["optim.max_grad_norm=0"], "optim.max_grad_norm=0.0: must be above 0, or null"),
        (["keep=0"], "keep=0: must be at least 1"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU refuses")
def test_what_cannot_run_is_refused(video_folder, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(config_of(video_folder, tmp_path / "run", *overrides))
    assert not list(tmp_path.iterdir())


def test_workers_whose_batches_do_not_fit_into_shared_memory_are_refused(video_folder, tmp_path, monkeypatch):
    usage, size = shutil.disk_usage("/"), 2 * 3 * 4 * 32 * 32
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=10**12, free=23 * size))
    assert preflight.shared_memory_needed(config_of(video_folder, tmp_path / "run")) == 0
    config = config_of(video_folder, tmp_path / "run", "data.num_workers=5")
    preflight.check_shared_memory(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=10**12, free=23 * size - 1))
    there = "and .* has 1 MB free of 1000000 MB"
    with pytest.raises(ValueError, match=f"data.num_workers=5: their prefetched batches take 1 MB .*{there}"):
        train(config)
    monkeypatch.setattr("nlvideo.runtime.shared_memory.SHARED_MEMORY", tmp_path / "none")
    preflight.check_shared_memory(config)


@pytest.mark.parametrize(
    ("cuda", "workers", "accumulate", "precise", "expected"),
    [
        (False, 5, 1, 0, 23),  # two loaders hold ten each; one is trained, and of the validation one used and one comes
        (False, 1, 8, 0, 18),  # one loader holds two; those of a step are trained, and those of the next collected
        (False, 1, 8, 5, 28),  # two loaders; a step is trained, one measured, and one collected
        (True, 5, 8, 5, 20),  # what is used is pinned
    ],
)
def test_batches_that_are_in_shared_memory_at_once(
    video_folder, tmp_path, monkeypatch, cuda, workers, accumulate, precise, expected
):
    """Real runs held 14 of 16, 8 of 10 and 14 of 18 batches (workers, accumulate, precise: 1 4 3, 1 4 0, 3 2 4)."""
    options = [f"optim.accumulate={accumulate}", f"optim.batch_size={accumulate}", f"precise_bn_steps={precise}"]
    config = config_of(video_folder, tmp_path / "run", *options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert preflight.batches_at_once(config, workers) == expected


def test_the_parts_of_the_cost_table_add_up():
    config = composed("experiment=i3d_r50_nl5", "data.root=x")
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, 400)
    parts = cost_table(network, 32, 224, 224)
    assert [part.name for part in parts if part.name.startswith("  ")] == [
        f"  block at {place}" for place in ("res3.1", "res3.3", "res4.1", "res4.3", "res4.5")
    ]
    stages, total = [part for part in parts[:-1] if not part.name.startswith("  ")], parts[-1]
    assert sum(part.multiply_adds for part in stages) == total.multiply_adds
    assert sum(part.params for part in stages) + 128 == total.params  # bn1 stands between the parts
    cost = count_cost(network, 32, 224, 224)
    assert (cost.params, cost.multiply_adds) == (total.params, total.multiply_adds)
    assert [part.output for part in parts if part.name in ("conv1", "res5")] == [
        "16 x 112 x 112 x 64",
        "4 x 7 x 7 x 2048",
    ]


def test_predicted_activations_are_what_autograd_keeps():
    config = composed("experiment=quickstart", "model.width=8", "data.num_frames=8")
    network = build_model(config.model, config.block, config.data, 10).to(memory_format=torch.channels_last_3d)
    clips = torch.randn(2, 3, 8, 64, 64).contiguous(memory_format=torch.channels_last_3d)
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    predicted = {}
    for dtype in (torch.float32, torch.bfloat16):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = network.train()(clips)
        predicted[dtype] = activation_bytes(network, clips.shape, dtype)
        assert predicted[dtype] == pytest.approx(sum(kept.values()), rel=0.05)
        del y
    network.activation_checkpointing = ("res2", "res3", "res4", "res5")
    assert activation_bytes(network, clips.shape, torch.float32) < 0.6 * predicted[torch.float32]
