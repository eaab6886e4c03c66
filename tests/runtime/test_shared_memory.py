import resource
import shutil

import pytest
import torch

from nlvideo.runtime import shared_memory as module
from nlvideo.runtime.shared_memory import Room, SharedMemoryFull, share, shared_memory


def test_the_room_is_known_only_where_there_is_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64_000_000, used=0, free=5_000_000))
    assert shared_memory() == (64_000_000, 5_000_000) and str(shared_memory()) == "5 MB free of 64 MB"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=0, used=0, free=0))
    assert shared_memory() is None
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "none")  # as on macOS
    assert shared_memory() is None


def test_a_tensor_keeps_its_layout_in_shared_memory():
    clips = torch.arange(48.0).reshape(1, 2, 4, 3, 2).permute(0, 4, 1, 2, 3)
    stride, values = clips.stride(), clips.clone()
    share(clips)
    assert clips.is_shared() and clips.stride() == stride and torch.equal(clips, values)
    share(torch.empty(0))


def test_pytorch_raises_where_memory_cannot_be_had():
    """A limit to the size of files stands for a small /dev/shm: PyTorch reserves memory in a file before it writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        share(torch.empty(500_000, dtype=torch.uint8))
        with pytest.raises(SharedMemoryFull, match="no room in shared memory for 2.0 MB"):
            share(torch.empty(2_000_000, dtype=torch.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_tensor_without_room_is_named_with_the_room(monkeypatch):
    def full(_self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(module, "shared_memory", lambda: Room(64_000_000, 1_000_000))
    with pytest.raises(SharedMemoryFull, match="no room in shared memory for 2.0 MB: .* has 1 MB free of 64 MB"):
        share(torch.empty(2_000_000, dtype=torch.uint8))
    monkeypatch.setattr(module, "shared_memory", lambda: None)
    with pytest.raises(SharedMemoryFull, match="unable to allocate"):
        share(torch.empty(1))
