"""Where the time of a step goes, also on a device that works while the host is a step ahead."""

import pytest
import torch

from nlvideo.training.step_timer import StepTimer

LAUNCHING = 0.02  # seconds that the host needs for a step


class Moment:
    """A CUDA event."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def elapsed_time(self, later: "Moment") -> float:
        return 1000 * (later.seconds - self.seconds)


class FakeDevice:
    """A host and a device with clocks of their own; the device does what it is given, in order."""

    def __init__(self, monkeypatch):
        self.host = self.device = 0.0
        self.timer = StepTimer(torch.device("cpu"))
        self.timer.cuda = True
        monkeypatch.setattr(self.timer, "now", self.record)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr("nlvideo.training.step_timer.time.monotonic", lambda: self.host)

    def record(self) -> Moment:
        self.device = max(self.device, self.host)  # an idle device records at once
        return Moment(self.device)

    def loader(self, steps: int, every: float):
        for i in range(steps):
            self.host = max(self.host, (i + 1) * every)
            yield i

    def train(self, steps: int, every: float, computing: float) -> dict[str, float]:
        """Trains steps whose data come every so many seconds; the host reads each result one step late."""
        before = 0.0
        for _ in self.timer.timed(self.loader(steps, every)):
            self.timer.start()
            self.host += LAUNCHING
            self.device = max(self.device, self.host) + computing
            self.timer.lap("forward")
            self.timer.end()
            self.host, before = max(self.host, before), self.device
        return self.timer.take()


@pytest.mark.parametrize(("every", "computing"), [(0.1, 0.095), (0.1, 0.05), (0.1, 0.2), (0.01, 0.05)])
def test_the_wait_for_data_is_what_the_device_has_nothing_to_do(monkeypatch, every, computing):
    fake = FakeDevice(monkeypatch)
    idle = max(0.0, every - LAUNCHING - computing)  # from the end of a step to the first launch of the next
    assert fake.train(100, every, computing)["data_wait"] == pytest.approx(99 * idle + every)  # the first waits alone
    assert fake.timer.take() == {"data_wait": 0, "communication": 0.0}


def test_on_a_cpu_it_is_the_time_that_the_host_waits(monkeypatch):
    clock = iter([0.0, 0.3, 1.0, 1.1, 2.0, 2.0])
    monkeypatch.setattr("nlvideo.training.step_timer.time.monotonic", lambda: next(clock))
    timer = StepTimer(torch.device("cpu"))
    for _ in timer.timed([1, 2]):
        timer.start()
        timer.end()
    assert timer.take()["data_wait"] == pytest.approx(0.4)


def test_a_validation_between_two_steps_is_no_wait_for_data(monkeypatch):
    fake = FakeDevice(monkeypatch)
    fake.train(3, 0.01, 0.05)
    fake.host = fake.device + 60  # validating
    assert fake.train(1, 0.01, 0.05)["data_wait"] == 0
