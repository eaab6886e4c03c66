"""cuDNN times its algorithms in training on CUDA only, and a caller's setting comes back."""

import pytest
import torch

from nlvideo.runtime.convolutions import time_algorithms, varying_shapes
from nlvideo.runtime.precision import keeping_torch_settings


@pytest.mark.parametrize(("device", "timed"), [("cuda", True), ("cpu", False)])
def test_on_cuda_the_algorithms_are_timed_until_a_program_ends(device, timed):
    before = torch.backends.cudnn.benchmark
    with keeping_torch_settings():
        time_algorithms(torch.device(device))
        assert torch.backends.cudnn.benchmark is timed
    assert torch.backends.cudnn.benchmark is before


def test_where_shapes_vary_they_are_not(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(KeyError), varying_shapes():
        assert not torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark
