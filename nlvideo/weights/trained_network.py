"""A trained network's file, ours or another project's, read once: the network that it holds, its config and classes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_stated, from_container, to_container, to_dataclass
from nlvideo.config.schema import TrainConfig
from nlvideo.config.stated_keys import is_stated
from nlvideo.data.lists.class_file import has_names
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import UserError
from nlvideo.weights.adoption import shown, take
from nlvideo.weights.bounds import check_stored
from nlvideo.weights.checkpoint_file import (
    FORMAT,
    ORIGIN,
    check_content,
    digest,
    evaluation_weights,
    is_ours,
    load_checkpoint,
    naming,
)
from nlvideo.weights.fitting import check_fits, check_width, fitted
from nlvideo.weights.foreign_files import read_weights_file
from nlvideo.weights.hub import is_repository, local_weights
from nlvideo.weights.importers import ImportedWeights, import_weights
from nlvideo.weights.published import is_published
from nlvideo.weights.sources import SOURCES


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A checkpoint of ours, or another project's file in its place.

    Attributes:
        path: the file.
        config: of the training run, or what another project's file says of it.
        classes: names, in the order of the network's outputs.
        content: everything the file holds, as a checkpoint of ours would hold it.
        note: what another project's file is, and what was assumed of it.
    """

    path: Path
    config: TrainConfig
    classes: list[str]
    content: dict[str, Any]
    note: str | None = None

    def named(self, names: Sequence[str] | None) -> "TrainedCheckpoint":
        """Returns it with these class names, where it has as many classes without names; None: as it is.

        Whoever gives the names of the classes says what the outputs mean. Numbers are no names: they are matched.
        """
        if names is None or has_names(self.classes) or len(names) != len(self.classes):
            return self
        return self if all(name.isdigit() for name in names) else dataclasses.replace(self, classes=list(names))

    @property
    def step(self) -> int:
        return self.content["step"]

    @property
    def origin(self) -> str | None:
        """Whose weights these are, such as "PySlowFast weights"; None: a run's of ours, or not recorded."""
        return self.content.get(ORIGIN)

    @property
    def sha256(self) -> str:
        """Of the content, not of the file."""
        return self.content["sha256"]

    def build_network(self, num_frames: int | None = None) -> VideoResNet:
        """Returns the network with its weights for evaluation: precise batch-norm statistics where there are any.

        Args:
            num_frames: of the clips it will see; None: as in training. The head averages over the extent of the
                training crop, whatever is evaluated.

        Raises:
            UserError: the weights are not those of the network that the config describes.
        """
        clip = dataclasses.replace(self.config.data, num_frames=num_frames or self.config.data.num_frames)
        state = evaluation_weights(self.content)
        with naming(self.path, in_one_line=True):
            check_width(state, self.config.model.width)
            network = build_model(self.config.model, self.config.block, clip, len(self.classes))
            check_fits(network, state)
        network.load_state_dict(state)
        return network


def read_trained(path: str | Path) -> TrainedCheckpoint:
    """Reads a checkpoint of ours, another project's file, or a published network; see local_weights().

    Raises:
        UserError: it does not exist, is no checkpoint that is known, is corrupt, or holds the weights of a 2D network.
    """
    path = local_weights(path)
    content = read_weights_file(path)
    if is_ours(content):
        check_content(content, path)
        return _of_ours(path, content)
    with naming(path):
        imported = import_weights(content)
        if imported.flat:
            raise UserError(
                f"it holds a 2D network's {imported.title}, which have learnt no videos; start from them with "
                f"model.pretrained={path}."
            )
        return _as_trained(path, imported, ())


def read_imported(path: str | Path, source: str | None = None, config: Sequence[str] = ()) -> TrainedCheckpoint:
    """Reads another project's file as a checkpoint of ours.

    Args:
        path: the file.
        source: the project, a key of SOURCES; None: recognised by the names of the weights.
        config: overrides of nlvideo-train for what the file does not tell. They win over it; a project's preset, which
            is assumed, wins over the files of groups among them, which were written for other projects.

    Raises:
        UserError: no such file; an unknown source; a file that is corrupt, or does not fit the config. Names every
            kind of mismatch with its first keys.
    """
    if source is not None and source not in SOURCES:
        raise UserError(f"source={source!r} is unknown. Choose from: nlvideo, {', '.join(SOURCES)}.")
    path = Path(path)
    content = read_weights_file(path)
    if is_ours(content):
        raise UserError(f"{path} is an nlvideo checkpoint, which brings its own config; leave source and config out.")
    modes = [item.partition("=")[2] for item in config if item.startswith("block.mode=")]
    with naming(path):
        return _as_trained(path, import_weights(content, source, modes[-1] if modes else None), config)


def load_model(path: str | Path, *, source: str | None = None, config: Sequence[str] = ()) -> VideoResNet:
    """Returns a network in evaluation mode with the weights of a file, every one of them accounted for.

    Args:
        path: a checkpoint of ours; a file of one of SOURCES, of which a 2D network's is inflated into config's layout;
            a published network's folder; or its name on the Hugging Face hub, "owner/name" or "owner/name@revision".
            What exists here wins.
        source: the project that wrote it, "nlvideo" or a key of SOURCES; None: recognised by the names of the weights.
        config: for other projects' files, what they do not tell, as the overrides of nlvideo-train, such as
            ["block.mode=dot_product", "data.num_frames=16"]; see read_imported().

    Raises:
        UserError: as read_imported().
    """
    path = local_weights(path)
    if is_published(path):
        source = "nlvideo"
    if source == "nlvideo" or (source is None and is_ours(read_weights_file(path, lazily=True))):
        if config:
            raise UserError("config: an nlvideo checkpoint brings its own; leave it out.")
        trained = read_trained(path) if is_published(path) else _of_ours(path, load_checkpoint(path))
    else:
        trained = read_imported(path, source, config)
    return trained.build_network().eval()


def _of_ours(path: Path, content: dict[str, Any]) -> TrainedCheckpoint:
    with naming(path, in_one_line=True):
        check_stored(content["config"])
        config = from_container(TrainConfig, content["config"])
    return TrainedCheckpoint(path, config, list(content["classes"]), content)


def _as_trained(path: Path, imported: ImportedWeights, config: Sequence[str]) -> TrainedCheckpoint:
    if "fc.weight" not in imported.state:
        raise UserError(f"it has no classifier under the name that {imported.source} gives it.")
    composed, stated = compose_stated("train", ["data.root=.", "model.pretrained=null", *config])
    by_name = [name for name in stated if any(item.lstrip("+").startswith(f"{name}=") for item in config)]
    assumed = [key for key in imported.assumed if not is_stated(key, by_name)]
    left = [name for name in stated if name not in assumed]
    made = take(to_dataclass(composed), left, imported.values)
    classes = imported.classes or [str(k) for k in range(len(imported.state["fc.weight"]))]
    network = build_model(made.model, made.block, made.data, len(classes))
    content = {
        "format": FORMAT,
        "model": fitted(network, imported.state),
        "step": 0,
        "config": to_container(made),
        "classes": classes,
    }
    said = [f"{key}={shown(imported.values[key])}" for key in imported.assumed if not is_stated(key, left)]
    note = f"{path}: {imported.title}; assumed: {', '.join(said)}" if said else f"{path}: {imported.title}"
    # the origin came later, and evaluations know such files by the digest of the rest
    return TrainedCheckpoint(path, made, classes, content | {"sha256": digest(content), ORIGIN: imported.title}, note)


def checkpoint_path(name: str | Path) -> Path:
    """Returns the file or published network that this names: a run's folder stands for its newest checkpoint."""
    return Path(name) if is_repository(name) else local_weights(name)
