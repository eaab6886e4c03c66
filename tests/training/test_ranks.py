"""Several ranks."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from runs import BIN, TINY, assert_equal, config_of, ledger_of, list_with_broken, rows_of, torchrun

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime import distributed
from nlvideo.train import train, train_step
from nlvideo.training.run_status import read_status
from nlvideo.training.setup import set_up
from nlvideo.weights.checkpoint_file import digest, load_checkpoint

WORKER = """
import sys, torch
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_ranks import five_steps
five_steps(*sys.argv[3:])
"""


def five_steps(video_folder, output, batch_size, *overrides):
    """Five steps in float64 with frozen batch norm and no dropout; rank 0 saves losses and weights."""
    config = config_of(
        video_folder,
        f"{output}_run",
        "precision=float64",
        "model.frozen_bn=true",
        "block.norm=false",
        "block.places.r50=[res3.1,res4.4]",
        f"optim.batch_size={batch_size}",
        "optim.max_steps=5",
        "optim.lr=0.05",
        *overrides,
    )
    from nlvideo.build.data import train_batches
    from nlvideo.runtime import distributed

    run = set_up(config)
    for name, module in run.network.named_modules():  # gains of zero would leave most of the network out
        if name.endswith("bn3"):
            torch.nn.init.constant_(module.weight, 0.5)
        if isinstance(module, NonLocalBlock):
            torch.nn.init.normal_(module.out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    world = run.world
    steps = train_batches(config.data, run.train_table, run.share(), run.skipped, seed=0, first_step=0, last_step=5)
    losses = []
    for batches in steps:
        (loss,) = distributed.sum_over_ranks([train_step(run.learner, batches).read().loss])
        losses.append(loss / world.size)
    if world.is_main:
        torch.save({"losses": losses, "model": run.network.state_dict(), "size": world.size}, output)
    distributed.leave_world()


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        pytest.param("4", [], marks=pytest.mark.nightly),
        ("8", ["data.clips_per_video=2", "optim.mixup=0.4", "data.balance=sqrt"]),
        (
            "4",
            [
                "optim.mixup=0.4",
                "optim.cutmix=1",
                "optim.label_smoothing=0.1",
                "optim.class_weights=inverse",
                "data.balance=classes",
                "data.augment=colour",
            ],
        ),
    ],
    ids=["plain", "several", "mixed"],
)
def test_two_ranks_and_two_micro_batches_equal_one_with_the_doubled_batch(video_folder, tmp_path, batch_size, options):
    (tmp_path / "worker.py").write_text(WORKER)
    five_steps(str(video_folder), str(tmp_path / "one.pt"), batch_size, *options)
    five_steps(str(video_folder), str(tmp_path / "micro.pt"), batch_size, "optim.accumulate=2", *options)
    done = torchrun(
        2,
        str(tmp_path / "worker.py"),
        str(Path(__file__).parent.parent),
        str(Path(__file__).parent),
        str(video_folder),
        str(tmp_path / "two.pt"),
        batch_size,
        *options,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, micro, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "micro", "two"))
    assert (one["size"], micro["size"], two["size"]) == (1, 1, 2)
    assert len(set(one["losses"])) == 5
    for other in (micro, two):
        torch.testing.assert_close(torch.tensor(one["losses"]), torch.tensor(other["losses"]), rtol=0, atol=1e-10)
        for key, value in one["model"].items():
            torch.testing.assert_close(
                value, other["model"][key], rtol=0, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}"
            )


RUN = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_ranks import frozen_run
frozen_run(*sys.argv[3:])
"""


def frozen_run(video_folder, output, *overrides):
    """A run from pretrained weights, with frozen stages, an average and patience; rank 0 saves what is communicated."""
    from nlvideo.train import launch
    from nlvideo.training import learner

    buckets = []
    real = learner.share_gradients

    def noted(network, world, now, sent):
        model = real(network, world, now, sent)
        buckets.append(sorted(name for name, p in model.named_parameters() if p.requires_grad))
        return model

    learner.share_gradients = noted
    options = ["model.freeze=[stem,res2,res3,res4]", "optim.ema_decay=0.5", "optim.batch_size=4", "optim.max_steps=6"]
    options += ["validate_every_steps=1", "patience=1", "best_metric=loss", "optim.lr=100", "precise_bn_steps=1"]
    launch(config_of(video_folder, output, *options, *overrides))
    if os.environ.get("RANK", "0") == "0":
        torch.save(buckets[0], f"{output}/trained.pt")


@pytest.mark.slow
def test_ranks_with_frozen_parts_an_average_and_patience_end_together(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "pretrained", "optim.max_steps=1"))
    (tmp_path / "worker.py").write_text(RUN)
    folders = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    pretrained = f"model.pretrained={tmp_path}/pretrained/checkpoint.pt"
    done = torchrun(2, str(tmp_path / "worker.py"), *folders, str(video_folder), str(tmp_path / "two"), pretrained)
    assert done.returncode == 0, done.stderr[-3000:]
    status = read_status(tmp_path / "two")
    assert status["state"] == "finished" and status["reason"] in ("patience", "max_steps")
    content, before = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("two", "pretrained"))
    frozen = [key for key in content["model"] if key.startswith(("conv1.", "bn1.", "layer1.", "layer2.", "layer3."))]
    for key in frozen:
        assert torch.equal(content["model"][key], before["model"][key]), key
        assert torch.equal(content["ema"][key], before["model"][key]), key
    trained = torch.load(tmp_path / "two/trained.pt")
    assert trained and all("layer4." in name or "fc." in name for name in trained)


VIEWS = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_ranks import trained_with_and_without_views
trained_with_and_without_views(*sys.argv[3:])
"""


def trained_with_and_without_views(video_folder, output):
    """The same steps with gradients in DDP's buckets and with copies of them; rank 0 saves both networks."""
    from nlvideo.build.data import train_batches
    from nlvideo.runtime import distributed, gradients

    real, found, storages = gradients.DistributedDataParallel, {}, {}
    options = ["optim.batch_size=8", "optim.accumulate=2", "optim.max_grad_norm=0.5", "optim.max_steps=5"]
    config = config_of(video_folder, f"{output}_run", *options)
    for views in (True, False):
        gradients.DistributedDataParallel = lambda *arguments, views=views, **settings: real(
            *arguments, **{**settings, "gradient_as_bucket_view": views}
        )
        run = set_up(config)
        place = {"seed": 0, "first_step": 0, "last_step": 5}
        for batches in train_batches(config.data, run.train_table, run.share(), run.skipped, **place):
            train_step(run.learner, batches)
        found[str(views)] = run.network.state_dict()
        storages[str(views)] = len({p.grad.untyped_storage().data_ptr() for p in run.network.parameters()})
    if distributed.is_first():
        torch.save({**found, "storages": storages}, output)
    distributed.leave_together()


def test_gradients_that_lie_in_the_buckets_are_the_same_bits(video_folder, tmp_path):
    (tmp_path / "worker.py").write_text(VIEWS)
    folders = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    done = torchrun(2, str(tmp_path / "worker.py"), *folders, str(video_folder), str(tmp_path / "both.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    both = torch.load(tmp_path / "both.pt", weights_only=True)
    assert_equal(both["True"], both["False"])
    assert both["storages"]["True"] < 5 and both["storages"]["False"] > 100


@pytest.mark.slow
def test_num_devices_starts_ranks_that_name_the_same_bad_videos_as_one(video_folder, tmp_path):
    option = list_with_broken(video_folder, tmp_path, 2)
    options = [option, "data.max_bad_share=0.9", "optim.batch_size=4", "optim.max_steps=5"]
    train(config_of(video_folder, tmp_path / "1", *options))
    command = [BIN / "nlvideo-train", *TINY, *options, f"data.root={video_folder}"]
    command += ["num_devices=2", f"output_dir={tmp_path}/2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "device    2 x cpu" in done.stdout and "this run takes 4 (2 x 2)" in done.stdout
    val = [row for row in rows_of(tmp_path / "2") if row["split"] == "val"]
    assert [(row["step"], row["num_videos"]) for row in val] == [(2, 5), (4, 5), (5, 5)]
    one, two = (ledger_of(tmp_path / str(devices)) for devices in (1, 2))
    order = sorted(one, key=lambda row: (row["step"], row["video"], row["replaced_by"]))
    assert len(one) >= 2 and order == sorted(two, key=lambda row: (row["step"], row["video"], row["replaced_by"]))


START = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_ranks import digests_at_the_start
digests_at_the_start(*sys.argv[3:])
"""


def digests_at_the_start(video_folder, output, *overrides):
    """Rank 0 saves a digest of every rank's network as the first step finds it."""
    run = set_up(config_of(video_folder, f"{output}_run", "optim.batch_size=4", *overrides))
    digests = distributed.gather(digest({"model": run.network.state_dict()}))
    if run.world.is_main:
        torch.save(digests, output)
    distributed.leave_together()


def test_ranks_start_from_the_same_weights_and_statistics_of_pretrained_ones(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "pretrained", "optim.max_steps=1"))
    (tmp_path / "worker.py").write_text(START)
    folders = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    pretrained = [f"model.pretrained={tmp_path}/pretrained/checkpoint.pt", "model.frozen_bn=true"]
    done = torchrun(
        2, str(tmp_path / "worker.py"), *folders, str(video_folder), str(tmp_path / "found.pt"), *pretrained
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = torch.load(tmp_path / "found.pt")
    assert first == second
