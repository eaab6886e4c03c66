"""The first convolution: what a GPU computes in 16 bits is the same convolution."""

import pytest
import torch
import torch.nn.functional as F
from fake_gpus import GPU, Calls, fake_gpu, gpu_autocast

from nlvideo.models.stem_conv import StemConv, conv_of_four_pixels


@pytest.mark.parametrize(("height", "width"), [(16, 20), (17, 20), (16, 21), (7, 9), (1, 2)])
@pytest.mark.parametrize(("frames", "kernel", "stride"), [(6, 5, 1), (6, 5, 2), (5, 1, 1), (2, 5, 2), (1, 5, 1)])
def test_four_pixels_as_channels_give_the_convolution_and_its_gradients(height, width, frames, kernel, stride):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, frames, height, width, dtype=torch.float64, generator=random, requires_grad=True)
    weight = torch.randn(4, 3, kernel, 7, 7, dtype=torch.float64, generator=random, requires_grad=True)
    expected = F.conv3d(x, weight, None, (stride, 2, 2), (kernel // 2, 3, 3))
    found = conv_of_four_pixels(x.contiguous(memory_format=torch.channels_last_3d), weight, stride, kernel // 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    dy = torch.randn(expected.shape, dtype=torch.float64, generator=random)
    gradients = torch.autograd.grad(found, (x, weight), dy), torch.autograd.grad(expected, (x, weight), dy)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_takes_sixteen_channels_in_16_bits_alone(dtype):
    with fake_gpu(), GPU:
        conv = StemConv(8, 5, 2)
        clips = torch.empty(2, 3, 8, 64, 64).contiguous(memory_format=torch.channels_last_3d)
        with gpu_autocast(dtype), torch.no_grad(), Calls() as calls:
            y = conv(clips)
    ((image, weight),) = [args[:2] for name, args, _ in calls if name == "convolution"]
    assert (y.shape, y.dtype, image.dtype, weight.dtype) == ((2, 8, 4, 32, 32), dtype, dtype, dtype)
    assert image.shape[1] == weight.shape[1] == (3 if dtype == torch.float32 else 16)
    assert image.is_contiguous(memory_format=torch.channels_last_3d)


def test_it_is_pytorchs_convolution_on_a_cpu():
    conv, clips = StemConv(8, 5, 1), torch.randn(1, 3, 8, 16, 16)
    with torch.no_grad(), Calls() as calls:
        y = conv(clips)
    assert [args[0].shape[1] for name, args, _ in calls if name == "convolution"] == [3]
    assert torch.equal(y, F.conv3d(clips, conv.weight, None, (1, 2, 2), (2, 3, 3)))
