"""Training and evaluation of video action-recognition networks with non-local blocks."""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    *("GlobalContextBlock", "NonLocalBlock", "SimplifiedNonLocalBlock", "insert_blocks", "load_model"),
    *("Predictor", "predict"),
]


def __getattr__(name: str) -> Any:
    """Imports the public names when they are used: torch takes seconds, and `--help` should not."""
    if name == "insert_blocks":
        from nlvideo.models.insert import insert_blocks as found
    elif name == "load_model":
        from nlvideo.weights.importers import load_model as found
    elif name in ("Predictor", "predict"):
        from nlvideo.prediction import predictor

        found = getattr(predictor, name)
    elif name in __all__:
        from nlvideo import models

        found = getattr(models, name)
    else:
        raise AttributeError(f"module 'nlvideo' has no attribute {name!r}")
    return found
