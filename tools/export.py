"""Exports a checkpoint's network for programs without nlvideo: as ONNX or as a torch.export archive.

    python tools/export.py outputs/default/checkpoint_best.pt network.onnx
    python tools/export.py outputs/default/checkpoint_best.pt network.pt2 --normalize

It takes clips (batch, 3, frames, height, width), any number of them, of the size that was trained with, and gives
logits (batch, classes). A .json of the same name says what the input is and what the outputs are; the file itself holds
the same text. Before the file gets its name it is run, and what it says is compared with the network.
"""

import argparse
import copy
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from nlvideo.build.model import build_model
from nlvideo.config.compose import explain, from_container
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.normalize import normalize
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import UserError, UserFileExistsError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint

ENDINGS = (".onnx", ".pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit


class Normalization(NamedTuple):
    """Values between 0 and 1, as in DataConfig."""

    mean: Sequence[float]
    std: Sequence[float]


class NormalizedNetwork(nn.Module):
    """A network that takes uint8 clips."""

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
    try:
        export(arguments.checkpoint, arguments.out, arguments.normalize)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except OmegaConfBaseException as error:  # a config of another version
        sys.exit(f"error: {arguments.checkpoint}: {explain(error)}")


def export(checkpoint: Path, out: Path, with_normalization: bool) -> None:
    """Writes the network of a checkpoint and says what was written.

    Raises:
        ValueError, OSError: what the user can mend.
    """
    if out.suffix not in ENDINGS:
        raise UserError(f"{out} must end in {' or '.join(ENDINGS)}, which says what to write.")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise UserFileExistsError(f"{path} exists already; nothing is overwritten.")
    if not out.parent.is_dir():
        raise UserFileNotFoundError(f"The folder {out.parent} does not exist.")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing and out.suffix == ".onnx":
        raise UserError(f"ONNX needs the packages {', '.join(missing)}: pip install nlvideo[export]")

    content = load_checkpoint(checkpoint)
    trained, classes = from_container(TrainConfig, content["config"]), content["classes"]
    data = trained.data
    network = build_model(trained.model, trained.block, data, len(classes))
    network.load_state_dict(evaluation_weights(content))
    clip_shape = (3, data.num_frames, data.crop_size, data.crop_size)
    description = {
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
            "shape": ["batch", len(classes)],
            "scores": "sigmoid" if data.multi_label else "softmax",
        },
        "block": trained.block.kind,
        "checkpoint_sha256": content["sha256"],  # as evaluation's result.json has it
        "step": content["step"],
        "classes": classes,
    }
    normalization = Normalization(data.mean, data.std) if with_normalization else None
    difference = export_network(network, clip_shape, out, normalization, description)
    print(f"{out}: clips {' x '.join(map(str, clip_shape))}, {len(classes)} classes, described in {out.stem}.json")
    print(f"  it and the network differ by {difference:.1e} of the largest logit, in batches of 1 and 3")


@torch.no_grad()
def export_network(
    network: nn.Module,
    clip_shape: tuple[int, int, int, int],
    path: Path,
    normalization: Normalization | None = None,
    description: Mapping[str, Any] | None = None,
) -> float:
    """Returns how far the file written is from the network: the largest difference over the largest logit.

    Args:
        network: what takes normalised clips; it is put into evaluation mode and else left as it is.
        clip_shape: (3, T, H, W).
        path: the .onnx or .pt2 file to write.
        normalization: put it into the file, which then takes uint8 clips.
        description: stands in the file as JSON, and beside it.

    Raises:
        UserError: the difference is larger than TOLERANCE; nothing is left behind.
    """
    description = dict(description or {})
    network = network.eval() if normalization is None else NormalizedNetwork(network, normalization).eval()
    write, runner = (_write_onnx, _onnx_runner) if path.suffix == ".onnx" else (_write_archive, _archive_runner)
    partial, partial_description = (path.with_name(f".{path.stem}.part{suffix}") for suffix in (path.suffix, ".json"))
    try:
        # What the exporters and their packages warn of, deprecated calls among each other, is not the user's to mend.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(_program(network, _random_clips(2, clip_shape, normalization), path.suffix), partial, description)
            exported = runner(partial)
            difference = max(
                _relative_difference(exported(clips), network(clips))
                for clips in (_random_clips(batch, clip_shape, normalization) for batch in (1, 3))
            )
        if difference > TOLERANCE:
            raise UserError(
                f"{path} would differ from the network by {difference:.1e} of the largest logit, more than "
                f"{TOLERANCE:.0e}; it was not written."
            )
        partial_description.write_text(json.dumps(description, indent=1))
        partial_description.replace(path.with_suffix(".json"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        partial_description.unlink(missing_ok=True)
    return difference


def _program(network: nn.Module, clips: Tensor, ending: str) -> torch.export.ExportedProgram:
    """Returns the traced network, for any batch."""
    network = copy.deepcopy(network).requires_grad_(False)
    for block in network.modules():
        if isinstance(block, NonLocalBlock):
            # ONNX has no searchsorted, which concatenation needs. Either way the number of chunks that gaussian's
            # softmax is computed in follows from the batch, which a program for any batch cannot do; the other
            # softmaxes have as many channels in the query as in the value, and so an operator of their own.
            block.plain = ending == ".onnx" or block.mode == "gaussian"
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (clips,), dynamic_shapes=({0: batch},), strict=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    for name in ("onnxscript", "onnx_ir"):  # they log what they cannot fold
        logging.getLogger(name).setLevel(logging.ERROR)
    exported = torch.onnx.export(program, dynamo=True, input_names=["clips"], output_names=["logits"], verbose=False)
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})
    exported.save(path)


def _write_archive(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    program.example_inputs = None  # they would be stored: 2 clips of 32 frames are 38 MB
    torch.export.save(program, path, extra_files={"description.json": json.dumps(description, indent=1)})


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


def _archive_runner(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _random_clips(batch: int, clip_shape: Sequence[int], normalization: Normalization | None) -> Tensor:
    """Returns the same clips every time, of the values that the exported network takes."""
    generator = torch.Generator().manual_seed(batch)
    if normalization is None:
        return torch.randn(batch, *clip_shape, generator=generator)
    return torch.randint(256, (batch, *clip_shape), dtype=torch.uint8, generator=generator)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns infinity for other shapes and for what is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return difference.nan_to_num(nan=float("inf")).item()


if __name__ == "__main__":
    main()
