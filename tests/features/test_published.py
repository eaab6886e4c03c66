"""preset=rtfm against the published arithmetic, written out plainly: Pillow's LANCZOS, numpy crops, snippets."""

import av
import numpy as np
import pytest
import torch
from feature_cases import write_moving
from PIL import Image

import nlvideo
from nlvideo.data.decoding.video import DecodeError
from nlvideo.weights.trained_network import read_trained


def frames_of(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def published_features(network, frames: list[np.ndarray], frequency: int = 16) -> np.ndarray:
    """Returns (snippets, 10, C) as extract_features.py of I3D_Feature_Extraction_resnet computes them of pictures."""
    pictures = [Image.fromarray(f).resize((340, 256), Image.Resampling.LANCZOS) for f in frames]
    video = np.stack([np.array(picture).astype(float) * 2 / 255 - 1 for picture in pictures])
    assert len(video) > 16
    found = []
    for first in range(0, (len(video) - 16) // frequency * frequency + 1, frequency):
        snippet = video[first : first + 16]
        crops = []
        for part in (snippet, snippet[:, :, ::-1]):
            crops += [part[:, :224, :224], part[:, :224, -224:], part[:, 16:240, 58:282]]
            crops += [part[:, -224:, :224], part[:, -224:, -224:]]
        rows = []
        for crop in crops:
            clip = torch.from_numpy(crop.transpose(3, 0, 1, 2).copy()).float()[None]
            with torch.no_grad():
                rows.append(network.features(clip).mean((2, 3, 4))[0].numpy())
        found.append(rows)
    return np.array(found)


@pytest.mark.parametrize("num_frames", [17, 47])
def test_the_preset_is_the_published_arithmetic(thin, tmp_path, num_frames):
    path = write_moving(tmp_path / "video.mp4", num_frames)
    expected = published_features(read_trained(thin).build_network(16).eval(), frames_of(path))
    found = nlvideo.FeatureExtractor(thin, "rtfm")(path)
    # Of 47 frames two snippets are whole; the last 15 frames are left out, as there.
    assert found.shape == expected.shape == ((num_frames // 16), 10, 128) and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected[:, 0] - expected[:, 5]).max() > 1e-3 * np.abs(expected).max()  # the mirror matters


def test_it_wants_more_frames_than_a_snippet_has(thin, tmp_path):
    path = write_moving(tmp_path / "video.mp4", 16)
    with pytest.raises(DecodeError, match="it has 16 frames, and features with preset=rtfm take at least 17"):
        nlvideo.FeatureExtractor(thin, "rtfm")(path)
