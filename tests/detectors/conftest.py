import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch):
    """The modules of tools/train_detector.py, by their names."""
    monkeypatch.syspath_prepend(TOOLS)
    names = ("networks", "coco_data", "average_precision", "pictures")
    parts = {name: importlib.import_module(f"detection.{name}") for name in names}
    programs = {name: importlib.import_module(name) for name in ("train_detector", "evaluate_detector", "write_shapes")}
    return SimpleNamespace(**parts, **programs)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A set of write_shapes with 8 training and 4 validation images."""
    folder = tmp_path_factory.mktemp("coco") / "shapes"
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(TOOLS)
        writing = importlib.import_module("write_shapes")
        (folder / "annotations").mkdir(parents=True)
        for seed, (split, number) in enumerate({"train2017": 8, "val2017": 4}.items()):
            writing.write_split(folder, split, number, seed, lamps=True)
    return folder


@pytest.fixture
def changed(shapes, tmp_path):
    """Returns a function that writes the training annotations with a change, and returns the options that name them."""

    def change(how, name="changed.json") -> list:
        content = json.loads((shapes / "annotations/instances_train2017.json").read_text())
        (tmp_path / name).write_text(json.dumps(how(content) or content))
        return ["--annotations", tmp_path / name, "--images", shapes / "train2017"]

    return change
