"""All features of a folder in one HDF5 or safetensors file, made of the arrays of each video one at a time."""

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlvideo.features.feature_folder import FeatureFolder, read_object
from nlvideo.features.video_list import ListedVideo
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import replacing, write_text

SUFFIXES_OF = {"hdf5": ".h5", "safetensors": ".safetensors"}
SAFE_DTYPES = {"float32": "F32", "float16": "F16"}
COPIED_BYTES = 2**24  # at a time


def check_single_format(file_format: str, videos: Sequence[ListedVideo]) -> None:
    """Raises UserError if a package is missing that the format needs, or it cannot hold these names together."""
    if file_format != "hdf5":
        return
    try:
        importlib.import_module("h5py")
    except ImportError:
        raise UserError("format=hdf5 needs h5py: pip install nlvideo[hdf5]") from None
    folders = {str(parent) for video in videos for parent in Path(video.name).parents}
    for video in videos:
        if video.name in folders:
            raise UserError(
                f"format=hdf5: {video.name} is a video and a folder of others, which HDF5 cannot hold under one name; "
                "use format=safetensors or npy."
            )


class SingleFile:
    """The file that a folder of parts becomes, and a json file beside it with what is known of its videos.

    Args:
        file: what is written.
        file_format: hdf5 or safetensors.
        parts: the arrays of each video, until they are in the file.
    """

    def __init__(self, file: Path, file_format: str, parts: FeatureFolder):
        self.file, self.file_format, self.parts = file, file_format, parts
        self.facts_file = file.with_suffix(".json")

    def known(self) -> dict[str, Any]:
        """Returns {name: facts} of the videos that the file holds already.

        Raises:
            UserFileExistsError: it is of another network or other settings.
        """
        facts = read_object(self.facts_file)
        if not self.file.exists():
            return {}
        self.parts.refuse_other(facts.get("made_by") or {}, self.facts_file)
        return facts["videos"]

    def take_parts(self, videos: Sequence[ListedVideo], endings: Sequence[str]) -> None:
        """Writes the file anew with those of the videos whose parts are finished, and removes the parts."""
        known = self.known()
        new = [video for video in videos if video.name not in known and self.parts.is_finished(video)]
        if new:
            arrays = {video.name + ending: self.parts.array_file(video, ending) for video in new for ending in endings}
            write_single(self.file, self.file_format, arrays, self.parts.settings)
            known |= {video.name: _without_settings(read_object(self.parts.facts_file(video))) for video in new}
            write_text(self.facts_file, json.dumps({"made_by": self.parts.settings, "videos": known}))
        shutil.rmtree(self.parts.folder, ignore_errors=True)


def _without_settings(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "made_by"}


def write_single(file: Path, file_format: str, parts: Mapping[str, Path], settings: Mapping[str, Any]) -> None:
    """Writes arrays of .npy files into one file, whole; the names of an earlier one stay in it.

    Args:
        parts: {name: .npy file}, new ones.
        settings: kept in the file: HDF5's attribute `made_by`, or safetensors' metadata.
    """
    write = _write_hdf5 if file_format == "hdf5" else _write_safetensors
    with replacing(file) as partial:
        write(partial, file if file.exists() else None, parts, json.dumps(settings))


def _write_hdf5(partial: Path, before: Path | None, parts: Mapping[str, Path], settings: str) -> None:
    h5py: Any = importlib.import_module("h5py")
    if before is not None:
        shutil.copyfile(before, partial)
    with h5py.File(partial, "a") as made:
        made.attrs["made_by"] = settings
        for name, part in parts.items():
            array = np.load(part, mmap_mode="r")
            if name in made:
                del made[name]
            stored = made.create_dataset(name, array.shape, array.dtype)
            for first, stop in _blocks(array):
                stored[first:stop] = array[first:stop]


def _write_safetensors(partial: Path, before: Path | None, parts: Mapping[str, Path], settings: str) -> None:
    """The format is the length of a json header, the header, and the arrays one after the other; the library's own
    writer holds all of them in memory."""
    arrays: dict[str, Any] = {}
    if before is not None:
        arrays = _views_of(before)
    arrays |= {name: np.load(part, mmap_mode="r") for name, part in parts.items()}
    header: dict[str, Any] = {"__metadata__": {"made_by": settings}}
    place = 0
    for name, array in arrays.items():
        offsets = [place, place + array.nbytes]
        header[name] = {"dtype": SAFE_DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(partial, "wb") as made:
        made.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for first, stop in _blocks(array):
                made.write(np.ascontiguousarray(array[first:stop]).data)


def _views_of(file: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file, mapped, not read."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    dtypes = {code: name for name, code in SAFE_DTYPES.items()}
    return {
        name: np.memmap(file, dtypes[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _blocks(array: np.ndarray) -> list[tuple[int, int]]:
    rows = max(1, COPIED_BYTES // max(1, array[:1].nbytes))
    return [(first, min(first + rows, len(array))) for first in range(0, len(array), rows)]
