"""What a dry run says of memory."""

import re

import pytest
import torch
from conftest import composed
from runs import config_of

import nlvideo.train
from nlvideo.build.model import build_model
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.models.cost import activation_bytes, num_params, passing_bytes
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.free_memory import free_memory
from nlvideo.train import train, train_step
from nlvideo.training.memory import savings, step_memory
from nlvideo.training.memory_trial import largest_measured, largest_that_fits
from nlvideo.training.out_of_memory import PRECISE_BN, VALIDATION, advising_on_memory
from nlvideo.training.run_status import read_status
from nlvideo.training.setup import set_up

CPU = World(0, 0, 1, torch.device("cpu"))
SMALL = (
    "experiment=i3d_r50_nl5 data.root=x model.width=8 data.num_frames=8 data.crop_size=64 optim.batch_size=8 "
    "model.pretrained=null precision=float32"
).split()


def small(*overrides: str) -> TrainConfig:
    return composed(*SMALL, *overrides)


def memory_of(*overrides: str, world: World = CPU):
    return step_memory(small(*overrides), 400, world)


def table_of(config: TrainConfig) -> dict:
    return dict(savings(config, 400, CPU, step_memory(config, 400, CPU)))


def test_weights_have_a_gradient_and_the_optimizers_state(monkeypatch):
    for name in ("activation_bytes", "passing_bytes"):
        monkeypatch.setattr(f"nlvideo.training.memory.{name}", lambda *_: 1)
    config = small()
    params = num_params(build_model(config.model, config.block, config.data, 400))
    assert memory_of("model.frozen_bn=false").weights == 4 * params * 3
    assert memory_of("model.frozen_bn=false", "optim.momentum=0", "optim.nesterov=false").weights == 4 * params * 2
    adamw = ["model.frozen_bn=false", "optim.kind=adamw", "optim.momentum=0.9", "optim.nesterov=true"]
    assert memory_of(*adamw).weights == 4 * params * 4
    assert memory_of(*adamw, "optim.ema_decay=0.9").weights == 4 * params * 5
    assert memory_of("model.frozen_bn=false", "precision=float64").weights == 8 * params * 3
    two = World(0, 0, 2, torch.device("cpu"))
    assert memory_of("model.frozen_bn=false", world=two).weights == 4 * params * 3  # gradients lie in the buckets
    assert memory_of("model.frozen_bn=false", "optim.accumulate=2", world=two).weights == 4 * params * 4
    assert memory_of("model.frozen_bn=true").weights < 4 * params * 3  # gains and biases of norms are not trained


def test_the_table_has_what_would_save_memory():
    now, table = memory_of(), table_of(small())
    assert list(table) == [
        "optim.accumulate=2",
        "model.activation_checkpointing=[res2,res3]",
        "model.activation_checkpointing=[res2,res3,res4,res5]",
        "precision=bfloat16",
    ]
    halves, some, all_stages, bfloat16 = table.values()
    assert halves.activations == pytest.approx(now.activations / 2, rel=0.01) and halves.clips == 4
    assert all_stages.activations < some.activations < now.activations
    assert 0.4 * now.activations < bfloat16.activations < now.activations
    assert {use.weights for use in table.values()} == {now.weights}
    assert some.largest(10**9) > now.largest(10**9)


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ("compile=true", "checkpointing"),
        ("optim.batch_size=7", "accumulate"),
        ("optim.batch_size=6 optim.accumulate=2", "accumulate"),
        ("optim.batch_size=2 optim.mixup=0.2", "accumulate"),
        ("precision=bfloat16", "precision"),
        ("model.activation_checkpointing=[res2,res3]", "checkpointing=[res2,res3]:"),
        ("model.pretrained=null", "freeze"),
    ],
)
def test_the_table_leaves_out_what_would_be_refused_or_is_so_already(overrides, missing):
    assert not [label for label in table_of(small(*overrides.split())) if missing in f"{label}:"]


def test_the_largest_micro_batch_is_computed_from_a_line_through_two():
    config = small("model.frozen_bn=false")
    now = memory_of("model.frozen_bn=false")
    network = build_model(config.model, config.block, config.data, 400)
    shape = (21, 3, 8, 64, 64)
    size = now.weights + activation_bytes(network, shape, torch.float32) + passing_bytes(network, shape, torch.float32)
    assert now.largest(size + 1000) == 21 and now.largest(size - 1000) == 20
    assert now.largest(now.weights // 2) == 0


def test_a_layer_holds_its_input_and_output_even_where_nothing_is_kept():
    config = small("model.train=head", "model.pretrained=imagenet")
    network = build_model(config.model, config.block, config.data, 400)
    shape = (2, 3, 8, 64, 64)
    assert activation_bytes(network, shape, torch.float32) < 1e5  # the head alone
    taken, given = 2 * 3 * 8 * 64 * 64, 2 * network.conv1.out_channels * 4 * 32 * 32
    assert passing_bytes(network, shape, torch.float32) >= 4 * (taken + given)  # of conv1
    assert passing_bytes(network, shape, torch.bfloat16) * 2 == passing_bytes(network, shape, torch.float32)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 64, 100, 1000])
@pytest.mark.parametrize("start", [1, 3, 8, 64])
def test_the_search_finds_what_fits(start, most):
    for limit in (0, 1, 2, 5, 16, 63, 64, 99, 500, 5000):
        tried = []

        def fits(number, limit=limit, tried=tried):
            tried.append(number)
            return number <= limit

        found, largest = largest_that_fits(fits, start, most), min(limit, most)
        assert largest - largest / 16 - 1 < found <= largest
        assert len(tried) == len(set(tried)) <= 20 and all(1 <= number <= most for number in tried)
        if limit < 16:
            assert found == largest


def test_steps_of_growing_size_are_tried_until_memory_runs_out(video_folder, tmp_path):
    words = ["dry_run=true", "optim.batch_size=4", "optim.accumulate=2"]
    run, sizes = set_up(config_of(video_folder, tmp_path / "run", *words)), []

    def limited(learner, batches):
        sizes.append([len(batch.clips) for batch in batches])
        if len(batches[0].clips) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_step(learner, batches)

    assert largest_measured(run.learner, limited, most=1000) == 5
    assert sizes == [[n, n] for n in (2, 4, 8, 6, 5)]
    assert all(parameter.grad is None for parameter in run.network.parameters())


def test_a_step_that_runs_out_of_memory_is_reported_in_one_line(video_folder, tmp_path, monkeypatch):
    def out_of_memory(learner, batches):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("nlvideo.train.train_step", out_of_memory)
    with pytest.raises(UserError, match="optim.batch_size=2: a step with micro-batches of 2 clips does not fit into"):
        train(config_of(video_folder, tmp_path / "run", "dry_run=true"))


def test_a_run_that_runs_out_of_memory_says_what_saves_some_and_resumes_with_it(video_folder, tmp_path, monkeypatch):
    real, steps = nlvideo.train.train_step, []

    def out_of_memory(learner, batches):
        steps.append(len(batches[0].clips))
        if len(steps) > 3 and steps[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(learner, batches)

    monkeypatch.setattr("nlvideo.train.train_step", out_of_memory)
    frozen = ["block=none", "model.frozen_bn=true"]  # single clips have no statistics here
    with pytest.raises(RunFailed) as failed:
        train(config_of(video_folder, tmp_path / "run", *frozen))
    assert str(failed.value) == (
        "The device has no memory for step 4, with micro-batches of 2 clips: raise optim.accumulate=1, "
        "set model.activation_checkpointing=[res2,res3], or use fewer or smaller clips "
        "(optim.batch_size=2). dry_run=true prints what each would save; resume=auto resumes from the last checkpoint."
    )
    train(config_of(video_folder, tmp_path / "run", *frozen, "resume=auto", "optim.accumulate=2"))
    assert read_status(tmp_path / "run")["state"] == "finished" and steps == [2, 2, 2, 2, 1, 1]


def test_what_is_advised_is_what_can_be_changed(video_folder, tmp_path):
    config = config_of(video_folder, tmp_path / "run", "compile=true")
    with pytest.raises(RunFailed, match=r"1 clips: or use fewer"), advising_on_memory(config, Share(2, 0, 2), 1):
        raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(
    ("what", "named"),
    [(VALIDATION, "the validation after step 400"), (PRECISE_BN, "the precise batch norm after step 400")],
)
def test_what_follows_a_step_and_runs_out_of_memory_has_nothing_to_recompute(what, named, video_folder, tmp_path):
    config = config_of(video_folder, tmp_path / "run", "optim.batch_size=8")
    with pytest.raises(RunFailed) as failed, advising_on_memory(config, Share(8), 400, what):
        raise torch.OutOfMemoryError("no memory")
    assert str(failed.value) == (
        f"The device has no memory for {named}, with micro-batches of 8 clips: raise optim.accumulate=1, or use fewer "
        "or smaller clips (optim.batch_size=8). resume=auto resumes from the last checkpoint."
    )


@pytest.mark.parametrize(("part", "named"), [("validate", "validation"), ("statistics_after", "precise batch norm")])
def test_a_run_whose_validation_runs_out_of_memory_is_saved_before_it(part, named, video_folder, tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(f"nlvideo.train.{part}", out_of_memory)
        with pytest.raises(RunFailed, match=f"no memory for the {named} after step 2, with micro-batches of 2 clips"):
            train(config_of(video_folder, tmp_path / "run", "precise_bn_steps=1"))
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert train(config_of(video_folder, tmp_path / "run", "precise_bn_steps=1", "resume=auto")).step == 4


def test_other_errors_keep_their_traceback(video_folder, tmp_path):
    config = config_of(video_folder, tmp_path / "run")
    with pytest.raises(RuntimeError, match="a bug"), advising_on_memory(config, Share(2), 1, VALIDATION):
        raise RuntimeError("a bug")


def test_where_a_system_does_not_say_its_memory_nothing_is_refused(video_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nlvideo.runtime.free_memory.MEMINFO", tmp_path / "none")
    assert free_memory(torch.device("cpu")) is None
    train(config_of(video_folder, tmp_path / "run", "dry_run=true"))
    out = capsys.readouterr().out
    assert "; unknown available" in out and "│ unknown" in out and "largest   a micro-batch" not in out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose memory can run out")
def test_the_largest_micro_batch_is_measured_on_a_gpu(video_folder, tmp_path, capsys):
    train(config_of(video_folder, tmp_path / "run", "dry_run=true", "data.num_frames=32", "data.crop_size=112",
                    "data.scale_range=[112,128]", "data.test={short_side: 112, crop_size: 112}"))  # fmt: skip
    out = capsys.readouterr().out
    computed, measured = (int(n) for n in re.findall(r"at most (\d+) clips", out))
    assert 0.5 * computed < measured <= 1.1 * computed


def test_a_dry_run_prints_the_table_and_the_largest_micro_batch(video_folder, tmp_path, capsys):
    train(config_of(video_folder, tmp_path / "run", "dry_run=true"))
    out = capsys.readouterr().out
    assert "as configured" in out and "model.activation_checkpointing=[res2,res3,res4,res5]" in out
    assert re.search(r"largest   a micro-batch of at most \d\d+ clips fits into that \(computed\)", out)


def test_free_memory_keeps_to_the_containers_limit(tmp_path):
    cpu = torch.device("cpu")
    unlimited = free_memory(cpu, tmp_path)
    assert 10**7 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    assert free_memory(cpu, tmp_path) == pytest.approx(unlimited, rel=0.5)
    (tmp_path / "memory.max").write_text("9000000\n")
    assert free_memory(cpu, tmp_path) == 4_000_000
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 500000\n")
    assert free_memory(cpu, tmp_path) == 4_500_000
    old = tmp_path / "old/memory"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("7000000\n")
    (old / "memory.usage_in_bytes").write_text("8000000\n")
    assert free_memory(cpu, tmp_path / "old") == 0
