"""A network that tools/export.py has written, in the place of a checkpoint: what it says of its clips, and its logits.

An .onnx file holds numbers and operators only. A .pt2 archive does not: to read one, torch unpickles parts of it, looks
up the functions that it names and evaluates its expressions, so it can run any code. It is read only where the user
says that it is trusted.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlvideo.config.compose import from_container
from nlvideo.config.schema import ExtractConfig, TrainConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.bounds import check_stored, distinct_names
from nlvideo.weights.foreign_files import EXPORT_ENDINGS
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained

DESCRIPTION = "description.json"  # in a .pt2 archive; an .onnx file has one entry a key
DESCRIBED = (  # the keys of a description that are read
    *("input", "normalization", "num_frames", "frame_stride", "clip_fps", "short_side", "crop_size", "views"),
    *("output", "step", "classes"),
)
ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class ExportedNetwork(nn.Module):
    """Gives the logits of an exported file as VideoResNet does. It has no weights that torch could move.

    Args:
        run: returns logits (N, K) for clips (N, 3, T, H, W), on the CPU.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]):
        super().__init__()
        self._run = run

    def position_logits(self, clips: Tensor) -> Tensor:
        """Returns (N, 1, K): clips of the one size that it takes have one position."""
        return self._run(clips)[:, None]


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, as TrainedCheckpoint is a checkpoint's.

    Attributes:
        path: the file.
        config: how its clips are made; of the network it says nothing.
        classes: names, in the order of the network's outputs.
        clip_shape: (T, H, W) of the clips that it takes.
        normalizes: takes uint8 clips and normalises them itself.
        network: gives logits.
        note: what it is.
    """

    path: Path
    config: TrainConfig
    classes: list[str]
    clip_shape: tuple[int, int, int]
    normalizes: bool
    network: ExportedNetwork
    note: str

    def named(self, names: Sequence[str]) -> "ExportedFile":
        """Returns it with these class names; see TrainedCheckpoint.named()."""
        if has_names(self.classes) or all(name.isdigit() for name in names):
            return self
        return dataclasses.replace(self, classes=list(names))

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __reduce__(self) -> tuple[Callable, tuple[Path, bool]]:
        """Makes every rank of an extraction open the file itself, which the user trusts if it was opened here."""
        return read_network, (self.path, True)

    def check_clip(self, num_frames: int, size: int, keys: str = "data.num_frames, data.test.crop_size") -> None:
        """Raises UserError if the network does not take clips of this size; `keys` are those that set it."""
        if (num_frames, size, size) != self.clip_shape:
            frames, height, width = self.clip_shape
            raise UserError(
                f"{self.path} takes clips of {frames} frames of {height}x{width} alone, not {num_frames} of "
                f"{size}x{size} ({keys}); export again, or give the checkpoint."
            )

    def extraction(self, config: ExtractConfig) -> ExtractConfig:
        """Returns the settings of an extraction, whose crops are those that the network takes unless they say another.

        Raises:
            UserError: settings that need more than the logits of such crops.
        """
        if config.layer != "head":
            raise UserError(
                f"layer={config.layer}: {self.path} is an exported network, which gives layer=head alone; for res5 and "
                "res4 give its checkpoint."
            )
        if config.crops == "full":
            size = self.clip_shape[1]
            raise UserError(f"crops=full: {self.path} takes crops of {size} alone. Choose from: 1, 3, 5, 10.")
        if config.precision not in ("auto", "float32"):
            raise UserError(f"precision={config.precision}: {self.path} runs in float32.")
        own, data = self.config.data, config.data
        if self.normalizes and (own.mean, own.std) != (data.mean, data.std):
            raise UserError(f"data.mean, data.std or preset={config.preset}: {self.path} normalises its clips itself.")
        return config if config.crop_size else dataclasses.replace(config, crop_size=self.clip_shape[1])


def read_network(path: str | Path, trusted: bool = False) -> TrainedCheckpoint | ExportedFile:
    """Reads a network that can score clips: what read_trained() takes, or a file of tools/export.py.

    Args:
        trusted: the user says that a .pt2 archive may run code.

    Raises:
        UserError: as read_trained(); an export that cannot be read, that does not describe its clips, or a .pt2 archive
            that is not trusted.
    """
    path = Path(path)
    if path.suffix not in EXPORT_ENDINGS:
        return read_trained(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The exported network {path} does not exist.")
    run, described = _open_onnx(path) if path.suffix == ".onnx" else _open_archive(path, trusted)
    with _describing(path):
        return _exported(path, run, described)


@contextmanager
def _describing(path: Path) -> Iterator[None]:
    """Makes one line of a description that lacks something or has something of another kind."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        said = "; ".join(str(error).splitlines()) if isinstance(error, UserError) else repr(error)
        raise UserError(f"{path} does not describe its clips as tools/export.py does: {said}") from None


def _exported(path: Path, run: Callable[[Tensor], Tensor], described: Mapping[str, Any]) -> ExportedFile:
    frames, height, width = (int(number) for number in described["input"]["shape"][2:])
    views, colours = described["views"], described["normalization"]
    size = described["crop_size"]
    test = {key: views[key] for key in ("num_clips", "num_crops", "clip_sampling", "pooling")}
    data = {key: described[key] for key in ("num_frames", "frame_stride", "clip_fps", "crop_size")}
    data |= {"root": ".", "mean": colours["mean"], "std": colours["std"], "scale_range": [size, size]}
    data |= {"multi_label": described["output"]["scores"] == "sigmoid"}
    data["test"] = test | {"short_side": described["short_side"], "crop_size": size}
    check_stored({"data": data})
    config = from_container(TrainConfig, {"data": data, "precision": "float32"})
    classes = distinct_names(described["classes"])
    note = f"{path}: exported network of {len(classes)} classes, step {described['step']}"
    shape = (frames, height, width)
    return ExportedFile(path, config, classes, shape, bool(colours["inside"]), ExportedNetwork(run), note)


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs the package onnxruntime: pip install 'nlvideo[export]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about the exporter's graph
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class of their own
        raise UserError(f"{path} is not an ONNX file that can be read: {_first_line(error)}") from None
    held = session.get_modelmeta().custom_metadata_map
    with _describing(path):  # programs of others may have added entries
        described = {key: json.loads(held[key]) for key in DESCRIBED}
        _check_described(session, described)
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0]), described


def _check_described(session: Any, described: Mapping[str, Any]) -> None:
    """Raises UserError unless an ONNX file takes the clips and returns the logits that its description says."""
    for title, nodes, said, dtype in (
        ("input", session.get_inputs(), described["input"], described["input"]["dtype"]),
        ("output", session.get_outputs(), described["output"], "float32"),
    ):
        found = [(node.name, ONNX_TYPES.get(node.type, node.type), _fixed(node.shape)) for node in nodes]
        if found != [(said["name"], dtype, _fixed(said["shape"]))]:
            raise UserError(f"its {title} is to be {said['name']}, {dtype} {said['shape']}, and is {found}")
    sizes, colours = [described[key] for key in ("num_frames", "crop_size", "crop_size")], described["normalization"]
    for title, one, other in (
        ("input and num_frames, crop_size", described["input"]["shape"][2:], sizes),
        ("output and classes", described["output"]["shape"][1:], [len(described["classes"])]),
        ("input and normalization", described["input"]["dtype"], "uint8" if colours["inside"] else "float32"),
        ("names", [described["input"]["name"], described["output"]["name"]], ["clips", "logits"]),
    ):
        if one != other:
            raise UserError(f"its description contradicts itself in {title}: {one} and {other}")


def _fixed(shape: Sequence[Any]) -> list[int | None]:
    """Returns a shape without what the dimensions that vary are called."""
    return [size if isinstance(size, int) else None for size in shape]


def _open_archive(path: Path, trusted: bool) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    if not trusted:
        raise UserError(
            f"{path} could run code: torch unpickles and evaluates what a .pt2 archive holds. If you made it yourself, "
            "give trusted=true; an .onnx file runs none."
        )
    held = {DESCRIPTION: ""}
    try:
        with open(path, "rb") as file:
            program = torch.export.load(file, extra_files=held)
        described = json.loads(held[DESCRIPTION])
    except Exception as error:  # a corrupt file fails in as many ways as zip and json have
        raise UserError(f"{path} is not a .pt2 archive that can be read: {_first_line(error)}") from None
    module = program.module()
    return lambda clips: module(clips), described  # a module of ours would put it into eval mode, which it refuses


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
