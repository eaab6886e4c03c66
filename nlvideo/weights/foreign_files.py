"""Reads files of weights, ours and other projects'. Nothing in a file is ever run.

torch.save and safetensors files, and Caffe2's pickles of NumPy arrays.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import refuse_unreadable
from nlvideo.weights.published import (
    PUBLISHED_CLASSES,
    PUBLISHED_CONFIG,
    WEIGHTS_MARK,
    is_published,
    published_content,
)

EXPORT_ENDINGS = (".onnx", ".pt2")  # of what tools/export.py writes
_STATES = ("model_state", "state_dict", "blobs")  # where projects keep their weights, if not at the top
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files
_ZIP = b"PK"


def read_weights_file(path: str | Path, *, lazily: bool = False) -> Any:
    """Returns what a file of weights holds, tensors on the CPU.

    Args:
        path: the file, or a published network's folder, which is read as a checkpoint of ours.
        lazily: tensors are read from the disk when they are used, where the kind of file allows it.

    Raises:
        UserError: no such file, or none that can be read.
    """
    path = Path(path)
    if is_published(path):
        return published_content(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The checkpoint {path} does not exist.")
    if path.suffix in EXPORT_ENDINGS:
        raise UserError(
            f"{path} is an exported network, which only nlvideo-predict and nlvideo-extract take; give its checkpoint."
        )
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LEGACY_TORCH))
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if start.startswith(_ZIP) or start == _LEGACY_TORCH:
            return _read_torch(path, lazily and start.startswith(_ZIP))
        return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:  # a corrupt file fails in as many ways as pickle and zip have
        refuse_unreadable(path, error)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        if WEIGHTS_MARK.items() <= (file.metadata() or {}).items():
            raise UserError(
                f"{path} holds a published network's weights alone, which do not tell what they compute; give its "
                f"folder, with {PUBLISHED_CONFIG} and {PUBLISHED_CLASSES}."
            )
    return safetensors.torch.load_file(path)


def weights_in(content: Any) -> dict[str, Tensor]:
    """Returns the weights among what a file holds, by its project's names; {} where there are none."""
    for name in _STATES:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        return {}
    arrays = {str(key): value for key, value in content.items() if isinstance(value, Tensor | np.ndarray)}
    return {key.removeprefix("module."): torch.as_tensor(value) for key, value in arrays.items()}


def _read_torch(path: Path, mmap: bool) -> Any:
    """Returns what torch.save wrote. Classes unknown to torch become inert stubs instead of running."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)


class _Inert:
    """Stands for an object of an unknown class: takes anything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __setitem__(self, key, value):
        pass


class _InertUnpickler(pickle.Unpickler):
    """Finds what tensors and plain containers are made of, and a stub in place of everything else.

    Nothing from the file runs; what only an attack asks for is refused with its name all the same.
    """

    REFUSED = {
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "code"),
        *(
            (module, name)
            for module in ("builtins", "__builtin__")
            for name in ("eval", "exec", "compile", "open", "__import__")
        ),
    }

    ALLOWED = {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
        *(("torch", f"{kind}Storage") for kind in "Float Double Half BFloat16 Long Int Bool Byte".split()),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if module.split(".")[0] in self.REFUSED or (module, name) in self.REFUSED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no file of weights needs")
        return type(name, (_Inert,), {})


class _InertPickle:
    """What torch.load wants of a pickle module."""

    Unpickler = _InertUnpickler
    load = staticmethod(lambda file, **options: _InertUnpickler(file, **options).load())
    UnpicklingError = pickle.UnpicklingError
    __name__ = "pickle"


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain containers, and nothing that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
