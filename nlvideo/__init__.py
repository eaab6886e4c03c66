"""Training and evaluation of video action-recognition networks with non-local blocks."""

__version__ = "0.1.0"
