"""Exports a checkpoint's network for programs without nlvideo: as ONNX or as a torch.export archive.

    python tools/export.py outputs/default/checkpoint_best.pt network.onnx
    python tools/export.py outputs/default/checkpoint_best.pt network.pt2 --normalize

The export takes clips (batch, 3, frames, height, width) of the training size, in batches of any size, and returns
logits (batch, classes). A .json file of the same name describes input and output; the export holds the same text.
Before it is put in place, its logits are compared with the network's.
"""

import argparse
import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlvideo.data.clips.batch import normalize
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained

ENDINGS = (".onnx", ".pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit


class Normalization(NamedTuple):
    """Mean and standard deviation of RGB values in [0, 1], as in DataConfig."""

    mean: Sequence[float]
    std: Sequence[float]


class NormalizedNetwork(nn.Module):
    """A network that takes uint8 clips and normalises them."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalization.mean))
        self.register_buffer("std", torch.tensor(normalization.std))

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(normalize(clips, self.mean, self.std, torch.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="the .onnx or .pt2 file to write")
    parser.add_argument("--normalize", action="store_true", help="take uint8 RGB instead of normalised clips")
    arguments = parser.parse_args()
    with reporting_errors():
        export(arguments.checkpoint, arguments.out, arguments.normalize)


def export(checkpoint: Path, out: Path, with_normalization: bool) -> None:
    """Writes the network of a checkpoint and its description, and prints a summary.

    Raises:
        UserError: `out` cannot be written, or the checkpoint cannot be read.
        RunFailed: the export's logits differ from the network's; nothing is written.
    """
    check_output(out)
    trained = read_trained(checkpoint)
    data = trained.config.data
    clip_shape = (3, data.num_frames, data.crop_size, data.crop_size)
    normalization = Normalization(data.mean, data.std) if with_normalization else None
    description = describe(trained, clip_shape, with_normalization)
    difference = export_network(trained.build_network(), clip_shape, out, normalization, description)
    classes = len(trained.classes)
    print(f"{out}: clips {' x '.join(map(str, clip_shape))}, {classes} classes, described in {out.stem}.json")
    print(f"  largest difference from the network: {difference:.1e} of the largest logit, in batches of 1 and 3")


def check_output(out: Path) -> None:
    """Raises UserError unless `out` and its description can be written with the installed packages."""
    if out.suffix not in ENDINGS:
        raise UserError(f"{out} must end in {' or '.join(ENDINGS)}, which selects the format.")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise UserFileExistsError(f"{path} exists already; nothing is overwritten.")
    if not out.parent.is_dir():
        raise UserFileNotFoundError(f"The folder {out.parent} does not exist.")
    make_folder(out.parent, str(out))
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing and out.suffix == ".onnx":
        raise UserError(f"ONNX needs the packages {', '.join(missing)}: pip install nlvideo[export]")


def describe(trained: TrainedCheckpoint, clip_shape: Sequence[int], with_normalization: bool) -> dict[str, Any]:
    """Returns the description that is written as JSON."""
    data = trained.config.data
    return {
        "input": {
            "name": "clips",
            "shape": ["batch", *clip_shape],
            "layout": "batch, RGB channel, frame, height, width",
            "dtype": "uint8" if with_normalization else "float32",
            "values": "0 to 255" if with_normalization else "(RGB / 255 - mean) / std",
        },
        "normalization": {"mean": data.mean, "std": data.std, "inside": with_normalization},
        "num_frames": data.num_frames,
        "frame_stride": data.frame_stride,
        "output": {
            "name": "logits",
            "shape": ["batch", len(trained.classes)],
            "scores": "sigmoid" if data.is_multi_label else "softmax",
        },
        "block": trained.config.block.kind,
        "checkpoint_sha256": trained.sha256,  # as in the result.json of an evaluation
        "step": trained.step,
        "classes": trained.classes,
    }


@torch.no_grad()
def export_network(
    network: nn.Module,
    clip_shape: tuple[int, int, int, int],
    path: Path,
    normalization: Normalization | None = None,
    description: Mapping[str, Any] | None = None,
) -> float:
    """Writes a network and its description; returns the largest difference of logits over the largest logit.

    Args:
        network: takes normalised clips; put into eval mode, otherwise unchanged.
        clip_shape: (3, T, H, W).
        path: the .onnx or .pt2 file to write.
        normalization: include it in the export, which then takes uint8 clips.
        description: written as JSON into the export and beside it.

    Raises:
        RunFailed: the difference is larger than TOLERANCE; nothing is written.
    """
    description = dict(description or {})
    network = network.eval() if normalization is None else NormalizedNetwork(network, normalization).eval()
    write, open_runner = (_write_onnx, _onnx_runner) if path.suffix == ".onnx" else (_write_archive, _archive_runner)
    with replacing(path) as partial, replacing(path.with_suffix(".json")) as partial_description:
        # Users can do nothing about the warnings of exporters, such as deprecated calls to each other.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(_program(network, _random_clips(2, clip_shape, normalization), path.suffix), partial, description)
            run = open_runner(partial)
            batches = (_random_clips(size, clip_shape, normalization) for size in (1, 3))
            difference = max(_relative_difference(run(clips), network(clips)) for clips in batches)
        if difference > TOLERANCE:
            raise RunFailed(
                f"{path} would differ from the network by {difference:.1e} of the largest logit, more than "
                f"{TOLERANCE:.0e}; it was not written."
            )
        partial_description.write_text(json.dumps(description, indent=1))
    return difference


def _program(network: nn.Module, clips: Tensor, ending: str) -> torch.export.ExportedProgram:
    """Returns the traced network, for batches of any size."""
    network = copy.deepcopy(network).requires_grad_(False)
    for block in network.modules():
        if isinstance(block, NonLocalBlock):
            # ONNX lacks searchsorted, which concatenation needs. In both formats gaussian would compute its softmax in
            # chunks whose number depends on the batch size, which cannot be traced. The other softmaxes have a fused
            # operator, because their queries and values have the same number of channels.
            block.plain = ending == ".onnx" or block.mode == "gaussian"
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (clips,), dynamic_shapes=({0: batch},), strict=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    for name in ("onnxscript", "onnx_ir"):  # they log constants that they cannot fold
        logging.getLogger(name).setLevel(logging.ERROR)
    exported = torch.onnx.export(program, dynamo=True, input_names=["clips"], output_names=["logits"], verbose=False)
    assert exported is not None
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})
    exported.save(path)


def _write_archive(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    program.example_inputs = None  # otherwise stored: 2 clips of 32 frames are 38 MB
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={"description.json": json.dumps(description, indent=1)})


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


def _archive_runner(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _random_clips(batch: int, clip_shape: Sequence[int], normalization: Normalization | None) -> Tensor:
    """Returns clips that the exported network takes, the same in every call."""
    generator = torch.Generator().manual_seed(batch)
    if normalization is None:
        return torch.randn(batch, *clip_shape, generator=generator)
    return torch.randint(256, (batch, *clip_shape), dtype=torch.uint8, generator=generator)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns max |found - expected| / max |expected|; infinity for different shapes and NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return difference.nan_to_num(nan=float("inf")).item()


if __name__ == "__main__":
    main()
