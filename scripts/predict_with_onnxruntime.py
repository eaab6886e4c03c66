"""Scores a video with a network that tools/export.py has written, by PyAV, NumPy and onnxruntime alone.

    python scripts/predict_with_onnxruntime.py network.onnx video.mp4

The scores are those of nlvideo-predict to 1e-4. For clip_sampling=uniform; the network's description says how
others choose their frames. A video that its metadata turns, or that clip_fps takes by time, needs more than this.
"""

import json
import sys

import av
import numpy as np
import onnxruntime


def resized(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes (H, W, 3) uint8 bilinearly with antialiasing, rounding as torch does: Pillow's pixels, give or take 1."""
    for size in [round(side * short_side / min(pixels.shape[:2])) for side in (pixels.shape[1], pixels.shape[0])]:
        scale = pixels.shape[1] / size
        distance = np.arange(pixels.shape[1]) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
        weights = np.maximum(1 - abs(distance) / max(scale, 1), 0)
        weights /= weights.sum(1, keepdims=True)
        unit = next(2.0**n for n in range(23) if int(weights.max() * 2.0 ** (n + 1) + 0.5) >= 2**15)
        pixels = (np.floor(weights * unit + 0.5) @ pixels / unit + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 0, 2)
    return pixels  # each turn resizes the second axis and makes it the first one


network, video = sys.argv[1:]
session, scores = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"]), []
described = session.get_modelmeta().custom_metadata_map  # what network.onnx.json says too
keys = "views num_frames frame_stride clip_fps short_side crop_size normalization output classes".split()
if lacking := ", ".join(key for key in keys if key not in described):
    sys.exit(f"error: {network} does not say how its clips are made: it lacks {lacking}.")
made = {key: json.loads(described[key]) for key in keys}
views, length, stride, size = made["views"], made["num_frames"], made["frame_stride"], made["crop_size"]
for key, value, done in (
    ("clip_sampling", views["clip_sampling"], "uniform"),
    ("pooling", views["pooling"], "mean"),
    ("clip_fps", made["clip_fps"], None),
):
    if value != done:
        sys.exit(f"error: {network} is made for {key}={value}; this example does {done} alone.")
with av.open(video) as container:
    frames = [resized(frame.to_ndarray(format="rgb24"), made["short_side"]) for frame in container.decode(video=0)]
last, clips = max(len(frames) - length * stride, 0), views["num_clips"]
starts = [int(i * last / (clips - 1) + 0.5) for i in range(clips)] if clips > 1 else [last // 2]
height, width = frames[0].shape[:2]
free, longer = np.array([height - size, width - size]), np.array([height > width, width >= height])
crops = [free * (1 - longer) // 2, free // 2, np.where(longer, free, free // 2)]  # its start, the centre, its end
mean, std = (np.array(made["normalization"][key], np.float32).reshape(3, 1, 1, 1) for key in ("mean", "std"))
for start in starts:
    clip = np.stack([frames[(start + t * stride) % len(frames)] for t in range(length)]).transpose(3, 0, 1, 2)
    for top, left in crops if views["num_crops"] == 3 else crops[1:2]:
        pixels = clip[:, :, top : top + size, left : left + size]
        if not made["normalization"]["inside"]:
            pixels = (pixels / np.float32(255) - mean) / std
        logits = session.run(None, {"clips": pixels[None]})[0][0]
        odds = np.exp(logits - logits.max())
        scores.append(1 / (1 + np.exp(-logits)) if made["output"]["scores"] == "sigmoid" else odds / odds.sum())
best = np.argsort(-np.mean(scores, 0))[:5]
print(json.dumps({made["classes"][k]: round(float(np.mean(scores, 0)[k]), 6) for k in best}, indent=1))
