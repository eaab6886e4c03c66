"""Video ResNets and their context blocks."""

from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet

__all__ = ["GlobalContextBlock", "NonLocalBlock", "SimplifiedNonLocalBlock", "VideoResNet"]
