"""All features of a folder in one HDF5 or safetensors file, made of the arrays of each video one at a time."""

import errno
import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from nlvideo.features.feature_folder import FeatureFolder, read_made
from nlvideo.features.names import ListedVideo, check_array_names
from nlvideo.runtime.errors import UserError, UserFileExistsError
from nlvideo.runtime.files import replacing, write_text

SUFFIXES_OF = {"hdf5": ".h5", "safetensors": ".safetensors"}
SAFE_DTYPES = {"float32": "F32", "float16": "F16"}
COPIED_BYTES = 2**24  # at a time
HDF5_BYTES = 1024  # that an array takes besides its values, about


def check_format_package(file_format: str) -> None:
    """Raises UserError if a package is missing that the format needs."""
    if file_format == "hdf5":
        try:
            importlib.import_module("h5py")
        except ImportError:
            raise UserError("format=hdf5 needs h5py: pip install nlvideo[hdf5]") from None


class SingleFile:
    """The file that a folder of parts becomes, and a json file beside it with what is known of its videos.

    It is written first, then the json file, and the parts are removed last: what the file holds counts when the json
    file names it too.

    Args:
        file: what is written.
        file_format: hdf5 or safetensors.
        parts: the arrays of each video, until they are in the file.
    """

    def __init__(self, file: Path, file_format: str, parts: FeatureFolder):
        self.file, self.file_format, self.parts = file, file_format, parts
        self.facts_file = file.with_suffix(".json")

    def known(self) -> tuple[dict[str, Any], set[str]]:
        """Returns {name: facts} of the videos that the file holds already, and the names of all arrays in it.

        Raises:
            UserFileExistsError: it is of another network or other settings, or not ours.
        """
        facts = read_made(self.facts_file)
        if facts is not None:
            self.parts.refuse_other(facts["made_by"], self.facts_file)
        if not self.file.exists():
            return {}, set()
        made_by, arrays = read_single(self.file, self.file_format)
        self.parts.refuse_other(made_by, self.file)
        return {} if facts is None else facts["videos"], arrays

    def not_held(self, videos: Sequence[ListedVideo]) -> list[ListedVideo]:
        """Returns the videos that the file lacks.

        Raises:
            UserError: names that it cannot hold together with those it has.
            UserFileExistsError: it is of another network or other settings, or holds another video of one name.
        """
        known, arrays = self.known()
        new = {video.name + ending for video in videos for ending in self.parts.endings}
        check_array_names(arrays | new, self.file_format)
        for video in videos:
            if video.name in known:
                self.parts.refuse_other_video(known[video.name], video, self.facts_file)
        return [video for video in videos if video.name not in known]

    def take_parts(self, videos: Sequence[ListedVideo]) -> None:
        """Writes the file anew with those of the videos whose parts are finished, and removes these parts."""
        (known, _), parts = self.known(), self.parts
        new = [video for video in videos if video.name not in known and parts.is_finished(video)]
        if new:
            arrays = {
                video.name + ending: file
                for video in new
                for ending, file in zip(parts.endings, parts.array_files(video), strict=True)
            }
            write_single(self.file, self.file_format, arrays, parts.settings)
            known |= {video.name: _without_settings(parts.facts(video)) for video in new}
            write_text(self.facts_file, json.dumps({"made_by": parts.settings, "videos": known}))
        parts.remove(video for video in videos if video.name in known)


def _without_settings(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "made_by"}


def read_single(file: Path, file_format: str) -> tuple[dict[str, Any], set[str]]:
    """Returns the settings that made a file, and the names of its arrays.

    Raises:
        UserFileExistsError: it is no file of ours.
    """
    try:
        settings, names = (_read_hdf5 if file_format == "hdf5" else _read_safetensors)(file)
        return json.loads(settings), names
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        reason = f"and is no {file_format} file of nlvideo-extract; nothing is overwritten: give another output"
        raise UserFileExistsError(f"{file} exists, {reason}, or move it.") from None


def write_single(file: Path, file_format: str, parts: Mapping[str, Path], settings: Mapping[str, Any]) -> None:
    """Writes arrays of .npy files into one file, whole; the other arrays of an earlier one stay in it.

    Args:
        parts: {name: .npy file}.
        settings: kept in the file: HDF5's attribute `made_by`, or safetensors' metadata.
    """
    write = _write_hdf5 if file_format == "hdf5" else _write_safetensors
    with replacing(file) as partial:
        write(partial, file if file.exists() else None, parts, json.dumps(settings))


def _read_hdf5(file: Path) -> tuple[str, set[str]]:
    h5py: Any = importlib.import_module("h5py")
    with h5py.File(file, "r") as made:
        kinds: dict[str, bool] = {}  # whether it is an array; each item by one of its names
        made.visititems(lambda name, item: kinds.update({name: isinstance(item, h5py.Dataset)}))
        groups = [made, *(made[name] for name, is_array in kinds.items() if not is_array)]
        links = [group.get(name, getlink=True) for group in groups for name in group]
        if len(links) > len(kinds) or not all(isinstance(link, h5py.HardLink) for link in links):
            raise ValueError("a name leads out of the file, or to what has another name")  # and so would writing
        return made.attrs["made_by"], {name for name, is_array in kinds.items() if is_array}


def _write_hdf5(partial: Path, before: Path | None, parts: Mapping[str, Path], settings: str) -> None:
    h5py: Any = importlib.import_module("h5py")
    sizes = [file.stat().st_size + HDF5_BYTES for file in (*parts.values(), *filter(None, [before]))]
    if shutil.disk_usage(partial.parent).free < sum(sizes):  # which HDF5 would say in many lines, some not to be caught
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if before is not None:
        shutil.copyfile(before, partial)
    with _system_errors(), h5py.File(partial, "a") as made:
        made.attrs["made_by"] = settings
        for name, part in parts.items():
            array = np.load(part, mmap_mode="r")
            if name in made:
                del made[name]
            stored = made.create_dataset(name, array.shape, array.dtype)
            rows = max(1, COPIED_BYTES // max(1, array[:1].nbytes))
            for first in range(0, len(array), rows):
                stored[first : first + rows] = array[first : first + rows]


@contextmanager
def _system_errors() -> Iterator[None]:
    """Makes an OSError of what HDF5 says in several lines, as a RuntimeError where the file is closed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = re.search(r"errno = (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from None


class _Bytes(NamedTuple):
    """Where the values of an array are."""

    file: Path
    start: int
    size: int


def _read_safetensors(file: Path) -> tuple[str, set[str]]:
    header = _safetensors_header(file)[0]
    return header["__metadata__"]["made_by"], header.keys() - {"__metadata__"}


def _write_safetensors(partial: Path, before: Path | None, parts: Mapping[str, Path], settings: str) -> None:
    """The format is the length of a json header, the header, and the arrays one after the other; the library's own
    writer holds all of them in memory. Files are opened one at a time: there may be more than a process may open."""
    entries: dict[str, dict[str, Any]] = {}
    places: dict[str, _Bytes] = {}
    if before is not None:
        header, start = _safetensors_header(before)
        for name, entry in header.items():
            if name != "__metadata__" and name not in parts:
                first, stop = entry["data_offsets"]
                entries[name], places[name] = entry, _Bytes(before, start + first, stop - first)
    for name, part in parts.items():
        entries[name], places[name] = _entry_of(part)
    place = 0
    for name, entry in entries.items():
        entry["data_offsets"] = [place, place + places[name].size]
        place += places[name].size
    text = json.dumps({"__metadata__": {"made_by": settings}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with open(partial, "wb") as made:
        made.write(len(text).to_bytes(8, "little") + text)
        for found in places.values():
            with open(found.file, "rb") as source:
                _copy(source, made, found)


def _safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """Returns the header of a file, and where its values start."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("no safetensors file")
        return json.loads(opened.read(length)), 8 + length


def _entry_of(part: Path) -> tuple[dict[str, Any], _Bytes]:
    """Returns what a header says of an .npy file, and where its values are."""
    with open(part, "rb") as opened:
        npy.read_magic(opened)
        shape, _, dtype = npy.read_array_header_1_0(opened)
        place = _Bytes(part, opened.tell(), int(np.prod(shape)) * dtype.itemsize)
        return {"dtype": SAFE_DTYPES[dtype.name], "shape": list(shape)}, place


def _copy(source: BinaryIO, made: BinaryIO, found: _Bytes) -> None:
    source.seek(found.start)
    for first in range(0, found.size, COPIED_BYTES):
        made.write(source.read(min(COPIED_BYTES, found.size - first)))
