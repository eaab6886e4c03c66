"""A checkpoint of ours, read once: the network that it holds, its config and its classes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container
from nlvideo.config.schema import TrainConfig
from nlvideo.models.resnet import VideoResNet
from nlvideo.weights.checkpoint_file import NEWEST_FILE, evaluation_weights, load_checkpoint


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A checkpoint of ours.

    Attributes:
        path: the file.
        config: of the training run.
        classes: names, in the order of the network's outputs.
        content: everything the file holds.
    """

    path: Path
    config: TrainConfig
    classes: list[str]
    content: dict[str, Any]

    @property
    def step(self) -> int:
        return self.content["step"]

    @property
    def sha256(self) -> str:
        """Of the content, not of the file."""
        return self.content["sha256"]

    def build_network(self, num_frames: int | None = None) -> VideoResNet:
        """Returns the network with its weights for evaluation: precise batch-norm statistics where there are any.

        Args:
            num_frames: of the clips it will see; None: as in training. The head averages over the extent of the
                training crop, whatever is evaluated.
        """
        clip = dataclasses.replace(self.config.data, num_frames=num_frames or self.config.data.num_frames)
        network = build_model(self.config.model, self.config.block, clip, len(self.classes))
        network.load_state_dict(evaluation_weights(self.content))
        return network


def read_trained(path: str | Path) -> TrainedCheckpoint:
    """Reads a checkpoint; a run's folder stands for its newest one, `checkpoint.pt`.

    Raises:
        UserError: it does not exist, is not a checkpoint of ours, or is corrupt.
    """
    path = checkpoint_path(path)
    content = load_checkpoint(path)
    return TrainedCheckpoint(path, from_container(TrainConfig, content["config"]), list(content["classes"]), content)


def checkpoint_path(path: str | Path) -> Path:
    """Returns the file itself, or the newest checkpoint of a run's folder."""
    path = Path(path)
    return path / NEWEST_FILE if path.is_dir() else path
