"""Training and evaluation of video action-recognition networks with non-local blocks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlvideo.data.decoding.array_video import Frames
    from nlvideo.evaluate import evaluate_from_python as evaluate
    from nlvideo.features.extractor import FeatureExtractor
    from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
    from nlvideo.models.insert import insert_blocks
    from nlvideo.models.non_local import NonLocalBlock
    from nlvideo.prediction.predictor import Predictor, predict
    from nlvideo.train import train_from_python as train
    from nlvideo.weights.trained_network import load_model

__version__ = "0.2.0"
__all__ = [
    "FeatureExtractor",
    "Frames",
    "GlobalContextBlock",
    "NonLocalBlock",
    "Predictor",
    "SimplifiedNonLocalBlock",
    "evaluate",
    "insert_blocks",
    "load_model",
    "predict",
    "train",
]

PROGRAMS = ("train", "evaluate")  # modules that can be called
_PLACES = {
    "FeatureExtractor": "nlvideo.features.extractor",
    "Frames": "nlvideo.data.decoding.array_video",
    "GlobalContextBlock": "nlvideo.models.global_context",
    "NonLocalBlock": "nlvideo.models.non_local",
    "Predictor": "nlvideo.prediction.predictor",
    "SimplifiedNonLocalBlock": "nlvideo.models.global_context",
    "insert_blocks": "nlvideo.models.insert",
    "load_model": "nlvideo.weights.trained_network",
    "predict": "nlvideo.prediction.predictor",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: importing torch takes seconds, and `--help` should not wait for it."""
    if name in PROGRAMS:
        return importlib.import_module(f"nlvideo.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'nlvideo' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
