"""Modules that are programs and functions in one: `python -m nlvideo.train` and `nlvideo.train(...)`.

A submodule hides any function of its name in the package, so the module itself has to be what is called.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module_name: str, function: Callable[..., Any]) -> None:
    """Makes calling an imported module call `function`."""
    module = sys.modules[module_name]
    module.__class__ = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
