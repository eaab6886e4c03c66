"""Training from a checkpoint: what stays, what learns faster, what is averaged, when it ends."""

import signal

import numpy as np
import pytest
import torch
from conftest import composed
from kills import equal
from runs import StopAt, assert_equal, config_of, rows_of, weights_of

from nlvideo.experiments.sweep import is_finished
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.train import train
from nlvideo.training.learner import build_learner
from nlvideo.training.optim import build_optimizer, set_lr
from nlvideo.training.precise_bn import precise_statistics
from nlvideo.training.preflight import in_steps
from nlvideo.training.run_status import read_status
from nlvideo.training.setup import check_shares
from nlvideo.training.weight_average import WeightAverage, resume_average
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint

FAST = ["optim.batch_size=4", "optim.max_steps=3", "validate_every_steps=3", "checkpoint_every_steps=3"]


@pytest.fixture(scope="module")
def pretrained(video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    train(config_of(video_folder, folder, "optim.max_steps=2", "optim.lr=0.5", "optim.batch_size=4"))
    return f"model.pretrained={folder}/checkpoint.pt"


def part_of(key: str) -> str:
    if key.startswith("fc."):
        return "head"
    return f"res{int(key[5]) + 1}" if key.startswith("layer") else "stem"


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        (["model.train=head"], {"stem", "res2", "res3", "res4", "res5"}),
        (["model.freeze=[stem,res2,res3]", "precise_bn_steps=1"], {"stem", "res2", "res3"}),
        (["model.freeze=[res4]", "model.activation_checkpointing=[res4]", "optim.kind=adamw"], {"res4"}),
    ],
)
def test_frozen_parts_keep_every_bit_and_the_rest_learns(video_folder, tmp_path, pretrained, options, frozen):
    train(config_of(video_folder, tmp_path / "run", pretrained, *FAST, *options, "optim.ema_decay=0.5"))
    before = load_checkpoint(pretrained.split("=")[1])["model"]
    content = load_checkpoint(tmp_path / "run/checkpoint.pt")
    for state in (content["model"], content["ema"], evaluation_weights(content)):
        for key, value in state.items():
            if part_of(key) in frozen:
                assert torch.equal(value, before[key]), key
        moved = {part_of(key) for key, value in state.items() if not torch.equal(value, before[key])}
        assert moved == {"stem", "res2", "res3", "res4", "res5", "head"} - frozen
    trained = [key for key in content["model"] if "running" not in key and "num_batches" not in key]
    num_trained = sum(part_of(key) not in frozen for key in trained)
    assert len(content["optimizer"]["state"]) == num_trained


def test_frozen_parts_keep_no_activations():
    network = VideoResNet("c2d", 50, "paper", 3, width=4, frozen=["stem", "res2", "res3", "res4", "res5"])
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        network.train()(torch.rand(2, 3, 4, 32, 32)).sum().backward()
    assert sum(x.numel() for x in kept) <= 2 * 128 + network.fc.weight.numel() + 2 * 3
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.freeze=[stem,res2,res3,res4,res5,head]"], "nothing would be left to train"),
        (["model.train=head", "model.freeze=[head]"], "nothing would be left to train"),
        (["model.freeze=[res9]"], r"model.freeze=res9: choose from stem, res2"),
        (["model.train=body"], "model.train=body: choose from all, head"),
        (["optim.new_lr_factor=0"], "optim.new_lr_factor=0.0: must be above 0"),
        (["optim.new_lr_factor=-1"], "optim.new_lr_factor=-1.0: must be above 0"),
        (["optim.ema_decay=1"], "optim.ema_decay=1.0: must be above 0 and below 1"),
        (["optim.mixup=0.2", "optim.batch_size=3"], "optim.batch_size=3 must be a multiple of 2"),
        (["optim.kind=adam"], "optim.kind=adam: choose from sgd, adamw"),
        (["optim.kind=adamw", "optim.nesterov=false"], "optim.nesterov=False has no effect on optim.kind=adamw"),
        (["patience=2"], "patience=2 can never end the run: validate_every_steps=2 gives 1 validation before step 4"),
        (["patience=0"], "patience=0: must be at least 1"),
        (["best_metric=map"], "best_metric=map: choose from top1, top5, mean_class_accuracy, loss"),
        (["optim.max_epochs=0"], "optim.max_epochs=0.0: must be above 0"),
        (["model.train=head", "precise_bn_steps=1"], "precise_bn_steps=1 has no effect where only the head is trained"),
        (["data.augment_strength=3"], "data.augment_strength=3.0 has no effect on data.augment=none"),
        (["logger=tensorflow"], "logger=tensorflow: choose from wandb, mlflow"),
    ],
)
def test_what_cannot_be_meant_is_refused(video_folder, tmp_path, pretrained, options, message):
    with pytest.raises(UserError, match=message):
        train(config_of(video_folder, tmp_path / "run", pretrained, *options))
    assert not (tmp_path / "run").exists()


def test_freezing_needs_pretrained_weights(video_folder, tmp_path):
    with pytest.raises(
        UserError, match="model.train=head keeps pretrained weights, and model.pretrained=null has none"
    ):
        train(config_of(video_folder, tmp_path / "run", "model.train=head"))


def test_a_new_block_in_a_frozen_stage_is_refused(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "plain", "block=none", "optim.max_steps=1"))
    options = [f"model.pretrained={tmp_path}/plain/checkpoint.pt", "block=nl1", "model.freeze=[stem,res2,res3,res4]"]
    with pytest.raises(UserError, match="freezes the new block at res4.4, which could never learn: leave res4 out"):
        train(config_of(video_folder, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_new_parts_have_a_learning_rate_of_their_own(video_folder, tmp_path):
    network = VideoResNet("c2d", 50, "paper", 3, width=4)
    optim = config_of(video_folder, tmp_path, "optim.new_lr_factor=10", "model.pretrained=x").optim
    optimizer = build_optimizer(network, optim, ["fc", "layer4.2"])
    set_lr(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == (5.0 if name.startswith(("fc.", "layer4.2.")) else 0.5), name
    norms = {id(p) for name, p in network.named_parameters() if ".bn" in f".{name}" or "downsample.1" in name}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[i] for i in norms} == {0.0} and len(decays) == len(list(network.parameters()))


def test_the_average_of_weights_is_that_of_its_definition():
    torch.manual_seed(0)
    network = VideoResNet("c2d", 50, "paper", 3, width=4)
    averaged, expected = WeightAverage(network, 0.75), None
    for step in range(4):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        network.train()(torch.rand(2, 3, 4, 32, 32))
        if step == 2:  # as a resumed run does
            state = {key: value.clone() for key, value in averaged.module.state_dict().items()}
            averaged = WeightAverage(network, 0.75)
            resume_average(averaged, state, step)
        averaged.update_parameters(network)
        now = {key: value.clone() for key, value in network.state_dict().items()}
        if expected is None:
            expected = now
        else:
            blend = {key: 0.75 * expected[key] + 0.25 * now[key] for key in now}
            expected = {key: blend[key] if now[key].is_floating_point() else now[key] for key in now}
    for key, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)
        if not value.is_floating_point():
            assert torch.equal(value, network.state_dict()[key])


def test_the_average_is_what_is_validated_and_evaluated(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "plain", *FAST))
    train(config_of(video_folder, tmp_path / "run", *FAST, "optim.ema_decay=0.9"))
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "run"))  # training does not see it
    content = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert content["format"] == 3 and load_checkpoint(tmp_path / "plain/checkpoint.pt")["format"] == 2
    assert equal(evaluation_weights(content), content["ema"]) and not equal(content["ema"], content["model"])


def test_precise_statistics_are_those_of_the_average(video_folder, tmp_path, monkeypatch):
    seen = []

    def noted(network, batches):
        seen.append(network)
        return precise_statistics(network, batches)

    monkeypatch.setattr("nlvideo.training.validation.precise_statistics", noted)
    learners = []
    monkeypatch.setattr(
        "nlvideo.training.setup.build_learner", lambda *a, **k: learners.append(build_learner(*a, **k)) or learners[0]
    )
    train(config_of(video_folder, tmp_path / "run", *FAST, "optim.ema_decay=0.9", "precise_bn_steps=1"))
    assert seen and all(network is learners[0].averaged.module for network in seen)
    content = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert not torch.equal(content["ema"]["bn1.running_mean"], content["precise_bn"]["bn1.running_mean"])


def test_epochs_become_steps(video_folder, tmp_path):
    result = train(config_of(video_folder, tmp_path / "run", "optim.max_epochs=1.5", "optim.batch_size=4"))
    assert result.step == 3 and result.reason == "max_steps"  # 6 videos: 9 clips
    again = config_of(video_folder, tmp_path / "run", "optim.max_epochs=1.5", "optim.batch_size=4", "resume=auto")
    assert train(again).step == 3
    with pytest.raises(UserError, match="optim.max_epochs: 1.5 -> 2.0"):  # its cosine would be another
        train(config_of(video_folder, tmp_path / "run", "optim.max_epochs=2", "optim.batch_size=4", "resume=auto"))


def scripted(monkeypatch, losses):
    """Makes validations give these losses, one after the other."""
    values = iter(losses)
    monkeypatch.setattr(
        "nlvideo.train.validate", lambda run, stopping: {"top1": 0.5, "loss": next(values), "num_videos": 5}
    )


def test_a_run_ends_when_validations_bring_no_gain(video_folder, tmp_path, monkeypatch):
    options = ["optim.max_steps=20", "validate_every_steps=1", "best_metric=loss", "patience=2"]
    scripted(monkeypatch, [3.0, 2.0, 2.5, 2.0, 1.0])
    result = train(config_of(video_folder, tmp_path / "run", *options))
    assert (result.step, result.reason, result.state) == (4, "patience", "finished")
    status = read_status(tmp_path / "run")
    assert status["state"] == "finished" and status["reason"] == "patience" and status["step"] == 4
    assert load_checkpoint(tmp_path / "run/checkpoint_best.pt")["step"] == 2  # an equal loss is no gain
    again = train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))  # it has ended
    assert (again.step, again.reason, again.state) == (4, "patience", "finished")
    assert is_finished(tmp_path / "run", config_of(video_folder, tmp_path / "run", *options))
    assert not is_finished(tmp_path / "run", config_of(video_folder, tmp_path / "run", *options[:-1], "patience=3"))
    scripted(monkeypatch, [1.9, 2.0, 2.0, 2.0])
    more = [*options[:-1], "patience=3", "resume=auto"]  # more patience, and it goes on
    assert train(config_of(video_folder, tmp_path / "run", *more)).step == 8
    assert load_checkpoint(tmp_path / "run/checkpoint_best.pt")["step"] == 5


def test_a_resumed_run_without_patience_left_ends_between_validations(video_folder, tmp_path, monkeypatch):
    options = ["optim.max_steps=9", "validate_every_steps=2", "best_metric=loss"]
    scripted(monkeypatch, [1.0, 2.0])
    with monkeypatch.context() as patch:
        StopAt(patch, 5, signal.SIGTERM)
        assert train(config_of(video_folder, tmp_path / "run", *options)).reason == "signal"
    result = train(config_of(video_folder, tmp_path / "run", *options, "patience=1", "resume=auto"))
    assert (result.step, result.reason, result.state) == (5, "patience", "finished")
    assert read_status(tmp_path / "run")["reason"] == "patience"


def test_a_validation_without_a_loss_is_never_the_best(video_folder, tmp_path, monkeypatch):
    scripted(monkeypatch, [None, 2.0, 1.0, 1.5])
    train(config_of(video_folder, tmp_path / "run", "validate_every_steps=1", "best_metric=loss"))
    assert load_checkpoint(tmp_path / "run/checkpoint_best.pt")["step"] == 3


def test_steps_that_the_command_line_names_win_over_epochs_of_a_file():
    assert composed("experiment=finetune", "data.root=x").optim.max_epochs == 30
    config = composed("experiment=finetune", "data.root=x", "optim.max_steps=50", "validate_every_steps=5")
    assert config.optim.max_epochs is None and config.validate_every_epochs is None and config.optim.max_steps == 50
    with pytest.raises(UserError, match="optim.max_steps and optim.max_epochs say the same in two ways"):
        composed("experiment=finetune", "data.root=x", "optim.max_steps=50", "optim.max_epochs=3")
    assert in_steps(composed("data.root=x", "optim.batch_size=10", "optim.max_epochs=50"), 11).optim.max_steps == 55


def test_ranks_that_would_part_pairs_are_refused(video_folder, tmp_path):
    config = config_of(video_folder, tmp_path / "run", "optim.mixup=0.2", "optim.batch_size=12")
    with pytest.raises(UserError, match="must be a multiple of 8, twice the 4 ranks"):
        check_shares(config, World(0, 0, 4, torch.device("cpu")))


def test_a_failed_run_says_so(video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("nlvideo.train.train_step", lambda learner, batches: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config_of(video_folder, tmp_path / "run"))
    assert read_status(tmp_path / "run") == {"state": "failed", "reason": "error", "error": "division by zero"}


def test_everything_together_resumes_bit_for_bit(video_folder, tmp_path, monkeypatch, pretrained):
    options = [
        pretrained,
        "optim.max_steps=4",
        "optim.batch_size=4",
        "optim.accumulate=2",
        "optim.kind=adamw",
        "optim.ema_decay=0.8",
        "optim.mixup=0.4",
        "optim.cutmix=1",
        "optim.label_smoothing=0.1",
        "optim.class_weights=inverse",
        "optim.new_lr_factor=10",
        "model.keep_head=false",
        "model.freeze=[stem,res2]",
        "model.dropout=0.5",
        "data.balance=sqrt",
        "data.augment=trivial",
        "data.crop=random_resized",
        "data.erasing=0.5",
        "data.num_workers=1",
        "best_metric=loss",
        "validate_every_steps=1",
        "patience=2",
        "precise_bn_steps=1",
    ]
    train(config_of(video_folder, tmp_path / "whole", *options))
    with monkeypatch.context() as patch:
        StopAt(patch, 1, signal.SIGTERM)
        assert train(config_of(video_folder, tmp_path / "run", *options)).reason == "signal"
    train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))
    for name in ("checkpoint.pt", "checkpoint_best.pt"):
        whole, resumed = (load_checkpoint(tmp_path / folder / name) for folder in ("whole", "run"))
        for part in ("model", "optimizer", "ema", "precise_bn", "new_parts", "step", "meter"):
            assert equal(whole[part], resumed[part]), (name, part)
    assert whole["new_parts"] == ["fc"]
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "run")


def test_the_metrics_of_a_validation(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=2"))
    row = rows_of(tmp_path / "run")[-1]
    assert {"top1", "top5", "mean_class_accuracy", "loss"} <= row.keys()
    assert np.isfinite(row["loss"]) and row["loss"] > 0
