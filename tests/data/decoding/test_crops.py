import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nlvideo.data.decoding.video import TOLERANCE, Region, Span, resize_part, span


def smooth_frames(height, width):
    """Two frames (2, H, W, 3) of waves some pixels long: a shift by 1/16 of a pixel shows as two grey levels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + y / b + c) for a, b, c in ((2.5, 7, 0), (5, 3, 1), (9, 2.7, 2))]
    frame = (127 + 120 * np.stack(waves, 2)).astype(np.uint8)
    return torch.from_numpy(np.stack([frame, frame[::-1]]))


def whole_then_cut(frames, size, box):
    top, left, height, width = box
    resized = F.interpolate(frames.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[:, top : top + height, left : left + width]


def through_window(frames, size, box):
    top, left, height, width = box
    rows, columns = span(top, height, size[0], frames.shape[1]), span(left, width, size[1], frames.shape[2])
    part = frames[:, rows.first : rows.stop, columns.first : columns.stop]
    out = torch.empty(len(part), height, width, 3, dtype=torch.uint8)
    resize_part(part, rows, columns, out)
    return out


@pytest.mark.parametrize("total", [48, 97, 240, 256, 341, 426, 720, 1081])
def test_every_window_of_every_scale_is_there_and_stands_where_it_should(total):
    for size in [*range(64, 420, 7), total]:
        for length in {min(size, 64), min(size, 224), size}:
            for offset in sorted({0, 1, (size - length) // 3, (size - length) // 2, size - length} & {*range(size)}):
                if offset > size - length:
                    continue
                found = span(offset, length, size, total)
                assert 0 <= found.first < found.stop <= total and found.first % 2 == 0 and found.skip >= 0
                line = torch.full((1, found.stop - found.first, 8, 3), 7, dtype=torch.uint8)
                out = torch.zeros(1, length, 8, 3, dtype=torch.uint8)
                resize_part(line, found, span(0, 8, 8, 8), out)
                assert (out == 7).all()
                start = found.first * size / total
                assert abs(start - round(start)) <= TOLERANCE


@pytest.mark.parametrize("short_side", [256, 257, 271, 288, 293, 311, 320])
@pytest.mark.parametrize(("height", "width"), [(256, 340), (240, 426), (360, 480), (720, 1280), (241, 321)])
def test_the_window_is_the_whole_frame_resized_and_cut(height, width, short_side):
    frames = smooth_frames(height, width)
    size = (short_side, round(width * short_side / height))
    for top, left in ((0, 0), (size[0] - 224, size[1] - 224), ((size[0] - 224) // 2, (size[1] - 224) // 3)):
        box = (top, left, 224, 224)
        difference = (through_window(frames, size, box).int() - whole_then_cut(frames, size, box).int()).abs()
        assert difference.float().mean() < 2, (size, box)


def test_the_whole_frame_is_bit_equal():
    frames = smooth_frames(240, 426)
    box = (0, 0, 256, 454)
    assert torch.equal(through_window(frames, (256, 454), box), whole_then_cut(frames, (256, 454), box))


def test_at_the_frames_own_size_nothing_is_resized():
    frames = smooth_frames(64, 96)
    assert torch.equal(through_window(frames, (64, 96), (3, 5, 40, 50)), frames[:, 3:43, 5:55])


def test_a_region_is_grown_to_even_pixels_inside_the_frame():
    region = Region((97, 63), 3, 5, 94, 20, (40, 50))
    assert region.spans(97, 63) == (Span(2, 97, 0, 40, 40, 95), Span(4, 26, 0, 50, 50, 22))
    assert Region((97, 63), 0, 0, 1, 1, (40, 50)).spans(97, 63)[0] == Span(0, 2, 0, 40, 40, 2)


def test_a_region_lies_in_a_frame_of_another_size_where_it_did():
    region = Region((100, 200), 10, 20, 50, 60, (40, 40))
    assert [s[:2] for s in region.spans(50, 400)] == [(4, 30), (40, 160)]
    for height in range(2, 200):
        rows, columns = region.spans(height, 3 * height)
        assert 0 <= rows.first < rows.stop <= height and 0 <= columns.first < columns.stop <= 3 * height
