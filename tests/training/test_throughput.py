"""What bounds a run, from the seconds of its parts."""

import pytest

from nlvideo.training.throughput import (
    Rank,
    StepParts,
    Work,
    duration,
    pace_of,
    run_seconds,
    step_parts,
    throughput_rows,
    workers_needed,
)

# 8 clips of 32 frames: 18 clips/s decoded in one process, 25 computed in a tenth of a second.
STEP = StepParts(decoding=8 / 18, copying=0.004, forward=0.03, computing=0.1)
WORK = Work(steps=1000, clips=8, ranks=1, validations=10, videos=400, precise_bn_steps=0)


def rows(parts: StepParts, rank: Rank, work: Work = WORK) -> dict[str, str]:
    return dict(throughput_rows(parts, rank, work))


def test_few_workers_starve_eight_gpus():
    rank, work = Rank(cores=8, workers=4, gpu=True), WORK._replace(ranks=8)
    parts = STEP._replace(computing=0.04, forward=0.012, communication=0.01, exposed=0.002)
    pace = pace_of(parts, rank)
    assert (pace.seconds, pace.bound, pace.share) == (pytest.approx(8 / 18 / 4), "decoding", 1.0)
    shown = rows(parts, rank, work)
    assert shown["a step"] == "about 111 ms, 72.0 clips/s a rank, 576.0 in all"
    assert shown["bound by"] == "decoding, 100 % of a step; without it 42 ms"
    assert shown["workers needed"] == "11 a rank, on 12 cores, for the device not to wait for data"
    assert shown["communication"] == "10 ms over 8 ranks, 2 ms not hidden by computing"
    enough = Rank(cores=12, workers=11, gpu=True)
    assert pace_of(parts, enough).bound == "computing" and pace_of(parts, enough).seconds == pytest.approx(0.042)
    assert pace_of(parts, Rank(cores=11, workers=10, gpu=True)).bound == "decoding"


def test_more_workers_than_cores_decode_no_faster():
    few, many = Rank(cores=4, workers=3, gpu=True), Rank(cores=4, workers=16, gpu=True)
    assert pace_of(STEP, many).seconds == pace_of(STEP, few).seconds == pytest.approx(8 / 18 / 3)
    assert "148 ms with 16 workers, 3 of which have a core" in rows(STEP, many)["decoding a step"]
    assert pace_of(STEP, Rank(cores=1, workers=1, gpu=True)).seconds == pytest.approx(8 / 18)


def test_a_gpu_that_computes_all_the_time():
    rank = Rank(cores=8, workers=7, gpu=True)
    assert pace_of(STEP, rank) == (0.1, "computing", 1.0)
    assert workers_needed(STEP, rank) == 5  # of 4.44
    assert workers_needed(STEP._replace(decoding=0.4), rank) == 4  # exactly
    shown = rows(STEP, rank)
    assert shown["bound by"] == "computing, 100 % of a step" and shown["a step"] == "about 100 ms, 80.0 clips/s"
    assert "communication" not in shown and shown["computing a step"] == "100 ms, of which forward 30 ms"


def test_a_slow_bus():
    parts, rank = STEP._replace(copying=0.2), Rank(cores=8, workers=7, gpu=True)
    assert pace_of(parts, rank) == (0.2, "copying", 1.0)
    assert workers_needed(parts, rank) == 3 and rows(parts, rank)["copying a step"] == "200 ms to the device"


def test_a_slow_network():
    parts, rank = STEP._replace(communication=0.15, exposed=0.1), Rank(cores=8, workers=7, gpu=True)
    assert pace_of(parts, rank) == (0.2, "communication", pytest.approx(0.75))
    assert rows(parts, rank)["bound by"] == "communication, 75 % of a step; larger batches or a faster network help"
    hidden = parts._replace(communication=0.06, exposed=0.01)
    assert pace_of(hidden, rank) == (pytest.approx(0.11), "computing", pytest.approx(1 / 1.1))


def test_what_a_step_takes_longer_together_is_communication():
    parts = step_parts(0.5, 0.01, 0.03, together=0.13, alone=0.1, communication=0.05)
    assert parts == StepParts(0.5, 0.01, 0.03, pytest.approx(0.1), 0.05, pytest.approx(0.03))
    noisy = step_parts(0.5, 0.01, 0.03, together=0.2, alone=0.1, communication=0.05)
    assert (noisy.computing, noisy.exposed) == (pytest.approx(0.15), 0.05)
    assert step_parts(0.5, 0, 0.03, together=0.09, alone=0.1, communication=0.05)[3:] == (0.09, 0.05, 0.0)
    assert step_parts(0.5, 0, 0.03, together=0.1, alone=0.1, communication=0.0) == StepParts(0.5, 0, 0.03, 0.1)


def test_on_a_cpu_decoding_and_computing_share_the_cores():
    parts = StepParts(decoding=0.8, copying=0, forward=0.4, computing=1.2)
    two = Rank(cores=2, workers=2, gpu=False)
    assert pace_of(parts, two) == (pytest.approx(1.6), "computing", pytest.approx(0.75))
    assert pace_of(parts, two._replace(workers=1)).seconds == pytest.approx(1.6)  # the other core computes meanwhile
    assert pace_of(parts, two._replace(workers=0)) == (pytest.approx(2.0), "computing", pytest.approx(0.6))
    assert rows(parts, two)["workers needed"] == "1; they share the 2 cores with computing"
    long = parts._replace(decoding=8)
    assert pace_of(long, Rank(cores=8, workers=2, gpu=False)) == (4.0, "decoding", 1.0)
    assert pace_of(long, Rank(cores=2, workers=2, gpu=False)) == (
        pytest.approx(5.2), "decoding", pytest.approx(4 / 5.2),
    )  # fmt: skip
    assert workers_needed(long, Rank(cores=8, workers=2, gpu=False)) == 4  # 8 / (1 + 1.2)
    assert "copying a step" not in rows(parts, two)


def test_a_run_with_its_validations():
    rank = Rank(cores=8, workers=7, gpu=True)
    work = WORK._replace(ranks=2, videos=401, precise_bn_steps=20)
    seconds = run_seconds(STEP, rank, work)
    forward = 8 / 18 / 7  # of 8 clips: longer than their forward pass
    assert seconds.training == pytest.approx(100)
    assert seconds.validation == pytest.approx(10 * 201 / 8 * forward)
    assert seconds.precise_bn == pytest.approx(10 * 20 * forward)
    apart = run_seconds(STEP, rank, work._replace(decoding_apart=2 * 8 / 18))  # two clips of each video in training
    assert (apart.training, apart.precise_bn) == (seconds.training, seconds.precise_bn)
    assert apart.validation == pytest.approx(2 * seconds.validation)
    shown = rows(STEP, rank, work)["the whole run"]
    assert shown == "about 2.14 minutes: 1000 steps 100 s; estimated: 10 validations 16 s, precise batch norm 12.7 s"
    assert "precise" not in rows(STEP, rank)["the whole run"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 ms"), (0.0042, "4.2 ms"), (0.12345, "123 ms"), (119, "119 s"), (150, "2.5 minutes"), (7100, "118 minutes"),
     (9000, "2.5 hours"), (3.6e6, "1000 hours")],
)  # fmt: skip
def test_times_for_people(seconds, shown):
    assert duration(seconds) == shown
