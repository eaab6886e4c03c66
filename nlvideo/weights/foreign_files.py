"""Reads other projects' weight files. Nothing in a file is ever run.

torch.save and safetensors files, and Caffe2's pickles of NumPy arrays.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import KEYS


def read_foreign(path: str | Path, source: str) -> dict[str, Tensor]:
    """Returns the weights in another project's file by that project's names.

    Raises:
        UserError: no such file, or none that can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The file {path} does not exist.")
    try:
        content = _read_caffe2(path) if source == "caffe2" else _read_torch(path)
        if source == "pyslowfast" and isinstance(content, Mapping):
            content = content.get("model_state", content)
        for name in ("state_dict", "blobs"):
            if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
                content = content[name]
        state = {key.removeprefix("module."): torch.as_tensor(value) for key, value in _arrays(content).items()}
    except Exception as error:  # a corrupt file fails in as many ways as pickle and zip have
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise UserError(f"{path} is no {source} checkpoint that can be read ({reason}).") from error
    if not state:
        raise UserError(f"{path} holds no weights.")
    if set(KEYS) <= state.keys():
        raise UserError(f"{path} is an nlvideo checkpoint; load it with source='nlvideo'.")
    return state


def _arrays(content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"it holds {type(content).__name__}, not named weights")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor | np.ndarray) and not isinstance(v, str)}


def _read_torch(path: Path) -> Any:
    """Returns what torch.save or safetensors wrote. Classes unknown to torch become inert stubs instead of running."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
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
        *(("builtins", name) for name in ("eval", "exec", "compile", "open", "__import__")),
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


def _read_caffe2(path: Path) -> Any:
    return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
