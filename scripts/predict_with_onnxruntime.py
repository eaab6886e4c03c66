"""Scores a video with a network that tools/export.py has written, by PyAV, NumPy and onnxruntime alone.

    python scripts/predict_with_onnxruntime.py network.onnx video.mp4

The scores are those of nlvideo-predict to 1e-4. For clip_sampling=uniform; the json beside the network says how others
choose their frames. A video that its metadata turns, or that clip_fps takes by time, needs more than this.
"""

import json
import sys

import av
import numpy as np
import onnxruntime


def main(network: str, video: str) -> None:
    with open(f"{network}.json", encoding="utf-8") as file:
        made = json.load(file)
    views, length, stride, size = made["views"], made["num_frames"], made["frame_stride"], made["crop_size"]
    assert views["clip_sampling"] == "uniform" and made["clip_fps"] is None and views["pooling"] == "mean"
    with av.open(video) as container:
        frames = [resized(frame.to_ndarray(format="rgb24"), made["short_side"]) for frame in container.decode(video=0)]
    last, clips = max(len(frames) - length * stride, 0), views["num_clips"]
    starts = [int(i * last / (clips - 1) + 0.5) for i in range(clips)] if clips > 1 else [last // 2]
    height, width = frames[0].shape[:2]
    free = np.array([height - size, width - size])  # the first crop of three, in the middle, the last
    ends = [free * (free < free.max()) // 2, free // 2, np.where(free < free.max(), free // 2, free)]
    session, scores = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"]), []
    for start in starts:
        clip = np.stack([frames[(start + t * stride) % len(frames)] for t in range(length)])
        for top, left in ends if views["num_crops"] == 3 else ends[1:2]:
            pixels = clip[None, :, top : top + size, left : left + size].transpose(0, 4, 1, 2, 3)
            (logits,) = session.run(None, {"clips": normalized(pixels, made["normalization"])})
            odds = np.exp(logits[0] - logits.max())
            scores.append(1 / (1 + np.exp(-logits[0])) if made["output"]["scores"] == "sigmoid" else odds / odds.sum())
    mean = np.mean(scores, 0)
    print(json.dumps({made["classes"][k]: round(float(mean[k]), 6) for k in np.argsort(-mean)[:5]}, indent=1))


def resized(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes (H, W, 3) uint8 bilinearly with antialiasing, rounding as torch does: Pillow's pixels, give or take 1."""
    height, width = (round(side * short_side / min(pixels.shape[:2])) for side in pixels.shape[:2])
    pixels = weighted(pixels, width).transpose(1, 0, 2)
    return weighted(pixels, height).transpose(1, 0, 2)


def weighted(pixels: np.ndarray, size: int) -> np.ndarray:
    """Takes (rows, columns, 3) and returns (rows, size, 3)."""
    scale = pixels.shape[1] / size
    distance = np.arange(pixels.shape[1]) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(1 - abs(distance) / max(scale, 1), 0)
    weights /= weights.sum(1, keepdims=True)
    unit = next(2.0**n for n in range(23) if int(weights.max() * 2.0 ** (n + 1) + 0.5) >= 2**15)
    return (np.floor(weights * unit + 0.5) @ pixels / unit + 0.5).clip(0, 255).astype(np.uint8)


def normalized(pixels: np.ndarray, colours: dict) -> np.ndarray:
    """Takes and returns (1, 3, T, H, W); some networks do it themselves."""
    mean, std = (np.array(colours[key], np.float32).reshape(3, 1, 1, 1) for key in ("mean", "std"))
    return pixels if colours["inside"] else ((pixels / np.float32(255) - mean) / std).astype(np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
