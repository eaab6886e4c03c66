"""Which kernels PyTorch takes; the answers for a GPU come from tools/check_gpu.py."""

import pytest
import torch

from nlvideo.models import batch_norm, kernels, pairwise
from nlvideo.models.kernels import attention_kernel, batch_norm_kernel, has_own_batch_norm

CPU = torch.device("cpu")


def test_attention_is_flash_on_a_cpu_unless_ours_takes_it(monkeypatch):
    assert attention_kernel(CPU, torch.float32, 256) == ("flash", ("flash",))
    monkeypatch.setattr(pairwise, "_fused_attention_takes", lambda *_: False)
    assert attention_kernel(CPU, torch.float32, 256) == ("ours", ("flash",))


def test_pytorchs_predicates_are_asked_about_a_gpu(monkeypatch):
    asked = []

    def takes(params):
        asked.append(params)
        return len(asked) != 2

    for name in ("flash", "cudnn", "efficient"):
        monkeypatch.setattr(kernels.cuda, f"can_use_{name}_attention", takes)
    tensors = [torch.empty(1, 1, 4, 8) for _ in range(3)]

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    assert kernels._possible_kernels(tensors[0].as_subclass(OnGpu), *tensors[1:]) == ("flash", "efficient")
    assert asked[0].query.shape == (1, 1, 4, 8) and not asked[0].is_causal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_is_pytorchs_own_on_a_cpu(dtype):
    assert not has_own_batch_norm(CPU, dtype)
    assert batch_norm_kernel(CPU, dtype) == "native, 5 dimensions"


def test_a_batch_norm_of_four_dimensions_is_seen(monkeypatch):
    def flat(self, x):
        return torch.nn.functional.batch_norm(
            x.flatten(2, 3), self.running_mean, self.running_var, self.weight, self.bias, True
        ).unflatten(2, x.shape[2:4])

    monkeypatch.setattr(batch_norm.VideoBatchNorm3d, "forward", flat)
    assert has_own_batch_norm(CPU, torch.float32) and batch_norm_kernel(CPU, torch.float32) == "native, 4 dimensions"
