"""What nlvideo relies on of each private name of torch. A failure after an upgrade of torch names what has moved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from nlvideo.runtime import torch_private
from nlvideo.runtime.torch_private import (
    BatchNorm,
    FakeTensorMode,
    NormWithStatistics,
    attention_choice,
    batch_norm_backend,
    loader_workers,
    resize_antialiased,
    storage_id,
)


def test_every_name_has_a_test():
    assert set(torch_private.__all__) == {
        "BatchNorm",
        "FakeTensorMode",
        "NormWithStatistics",
        "attention_choice",
        "batch_norm_backend",
        "loader_workers",
        "resize_antialiased",
        "storage_id",
    }


@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_batch_norms_of_all_dimensions_share_a_class_and_their_buffers(cls):
    norm = cls(3)
    assert isinstance(norm, BatchNorm) and isinstance(norm, NormWithStatistics)
    assert norm.momentum == 0.1 and int(norm.num_batches_tracked) == 0 and norm.running_var.shape == (3,)


def test_instance_norms_have_statistics_and_layer_and_group_norms_have_none():
    assert isinstance(nn.InstanceNorm3d(3), NormWithStatistics) and not isinstance(nn.InstanceNorm3d(3), BatchNorm)
    assert not any(isinstance(norm, NormWithStatistics) for norm in (nn.LayerNorm(3), nn.GroupNorm(1, 3)))


def test_fake_tensors_have_shapes_and_dtypes_but_no_memory():
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        clips = torch.empty(2**20, 3, 16, 224, 224)  # more than any machine holds
        y = F.conv3d(clips, torch.empty(8, 3, 1, 7, 7), stride=(1, 2, 2))
    assert y.shape == (2**20, 8, 16, 109, 109) and y.dtype == torch.bfloat16
    assert y.untyped_storage().nbytes() == 2 * y.numel()


@pytest.mark.parametrize("fake", [False, True])
def test_storage_ids_are_equal_for_views_only(fake):
    with FakeTensorMode() if fake else torch.inference_mode():
        tensor, other = torch.empty(4, 6), torch.empty(4, 6)
        assert storage_id(tensor) == storage_id(tensor[1:].T) == storage_id(tensor.view(24))
        assert storage_id(tensor) != storage_id(other) and storage_id(tensor) != storage_id(tensor.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("size", [(20, 31), (72, 90)])
def test_a_resize_with_both_scales_equals_interpolate(size, dtype):
    images = torch.randint(256, (2, 3, 48, 60)).to(dtype)
    scales = [new / old for new, old in zip(size, images.shape[2:], strict=True)]
    expected = F.interpolate(images, size, mode="bilinear", antialias=True)
    assert torch.equal(resize_antialiased(images, size, scales), expected)
    out = torch.empty_like(expected)
    assert resize_antialiased(images, size, scales, out) is out and torch.equal(out, expected)


def test_the_scale_is_free_of_the_size():
    """The first rows of a resized image are the resized first rows of the image, at the scale of the whole."""
    images = torch.rand(1, 3, 90, 90)
    whole = resize_antialiased(images, (40, 40), (40 / 90, 40 / 90))
    part = resize_antialiased(images[:, :, :50], (18, 40), (40 / 90, 40 / 90))
    torch.testing.assert_close(part, whole[:, :, :18])
    derived = F.interpolate(images[:, :, :50], (18, 40), mode="bilinear", antialias=True)
    assert (derived - whole[:, :, :18]).abs().max() > 0.01


def test_the_workers_of_a_loader_are_its_own():
    alone, several = (iter(DataLoader([1, 2, 3], num_workers=number)) for number in (0, 2))
    assert loader_workers(alone) == []
    assert len(loader_workers(several)) == 2 and all(worker.is_alive() for worker in loader_workers(several))
    assert [int(item) for item in several] == [1, 2, 3]


def test_the_backend_of_a_batch_norm_has_a_name():
    norm = nn.BatchNorm3d(4)
    assert batch_norm_backend(norm, torch.randn(2, 4, 2, 8, 8)) == "Native"
    with FakeTensorMode(allow_non_fake_inputs=True):  # of a GPU, without one: PyTorch's choice for bfloat16
        x = torch.empty(2, 4, 2, 8, 8, device="cuda", dtype=torch.bfloat16)
        assert batch_norm_backend(nn.BatchNorm3d(4, device="cuda"), x) == "Native"


def test_the_backend_of_attention_has_a_name():
    q = torch.randn(1, 1, 64, 32)
    assert attention_choice(q, q, q) == "FLASH_ATTENTION"  # of the CPU
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_choice(q, q, q) == "MATH"
