"""Video ResNets and the context blocks that go into them."""

from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet

__all__ = ["GlobalContextBlock", "NonLocalBlock", "SimplifiedNonLocalBlock", "VideoResNet"]
