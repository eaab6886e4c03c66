"""What is asked of CUDA streams and events, in which order; the tensors are fake ones with a CUDA device."""

import pytest
import torch

from nlvideo.runtime.copy_stream import CopyStream, HostCopy
from nlvideo.runtime.torch_private import FakeTensorMode
from nlvideo.training.checkpoint_writer import TensorCopier
from nlvideo.training.step_metrics import LateResult


class Calls(list):
    """Stub streams and events that write down what is asked of them."""

    def stream(self, name: str):
        return type("Stream", (), {"wait_stream": lambda _, other: self.append(f"{name} waits for {other}"),
                                   "__str__": lambda _: name})()  # fmt: skip

    def within(self, stream):
        calls = self

        class Within:
            def __enter__(self):
                calls.append(f"in {stream}")

            def __exit__(self, *_):
                calls.append(f"out of {stream}")

        return Within()

    def event(self):
        return type("Event", (), {"record": lambda _: self.append("record"),
                                  "synchronize": lambda _: self.append("synchronize")})()  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    found = Calls()
    computing = found.stream("computing")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: found.stream("copying"))
    monkeypatch.setattr(torch.cuda, "stream", found.within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: computing)
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: found.append(f"used in {stream}"))
    for name in ("to", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, copying(found, name))
    return found


def copying(calls, name):
    plain = getattr(torch.Tensor, name)

    def method(tensor, *args, **kwargs):
        calls.append("copy" if kwargs.get("non_blocking") else "blocking copy")
        return plain(tensor, *args, **kwargs)

    return method


def test_copies_run_in_a_stream_that_the_computing_one_waits_for(calls):
    with FakeTensorMode():
        clips, targets = CopyStream(torch.device("cuda", 0))(torch.empty(2, 3), torch.empty(2))
    assert clips.device.type == targets.device.type == "cuda"
    assert calls == [
        *("in copying", "copy", "copy", "out of copying"),
        *("computing waits for copying", "used in computing", "used in computing"),
    ]


def test_a_result_is_read_when_its_copy_is_done(calls):
    with FakeTensorMode():
        result = HostCopy(torch.empty(3, device="cuda"))
        assert calls == ["copy", "record"]
        assert result.read().device.type == "cpu"
    assert calls == ["copy", "record", "synchronize"]


def test_a_steps_result_is_such_a_copy(calls):
    with FakeTensorMode():
        late = LateResult(torch.empty(3, device="cuda", dtype=torch.float64), multi_label=False)
        assert calls == ["copy", "record"]
        with pytest.raises(Exception, match="_local_scalar_dense"):  # fake tensors have no values to read
            late.read()
    assert calls == ["copy", "record", "synchronize"]


def test_a_checkpoint_is_copied_at_once_and_written_when_the_copies_are_done(calls):
    with FakeTensorMode():
        weight = torch.empty(2, 3, 4, 5, 6, device="cuda").contiguous(memory_format=torch.channels_last_3d)
        copier, content = TensorCopier(), {"model": {"w": weight}, "optimizer": [{"m": weight}], "step": 3}
        calls.clear()
        copied, ready = copier.copy(content)
        assert calls == ["copy", "copy", "record"]
        ready.synchronize()
        again, _ = copier.copy(content)
    buffer = copied["model"]["w"]
    assert buffer.device.type == "cpu" and buffer.stride() == weight.stride() and copied["step"] == 3
    assert copied["optimizer"][0]["m"] is not buffer
    assert again["model"]["w"] is buffer  # pinned memory is taken once


def test_the_thread_waits_for_the_copies_before_it_writes(tmp_path, monkeypatch):
    from nlvideo.training import checkpoint_writer

    done = []
    event = type("Event", (), {"synchronize": lambda _: done.append("synchronize")})()
    monkeypatch.setattr(TensorCopier, "copy", lambda _, content: (content, event))
    monkeypatch.setattr(checkpoint_writer, "save_step", lambda *_: done.append("write"))
    with checkpoint_writer.CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save({"step": 1})
    assert done == ["synchronize", "write"]
