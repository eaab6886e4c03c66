"""The house: rooms on floors, imports that go down only, one meaning for each name, short functions."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "nlvideo").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))

# From the bottom; a room imports from its own floor and those below. Rooms beside each other are named together.
FLOORS = (
    {"runtime"},
    {"models"},
    {"data"},
    {"attention"},
    {"config"},
    {"build"},
    {"weights"},
    {"evaluation"},
    {"training", "prediction", "features"},
    {"experiments"},
    {"train", "evaluate", "doctor", "__init__"},
)
# Private parts of these libraries are used in one file, or not at all.
PRIVATE_APIS = {"torch": "nlvideo/runtime/torch_private.py", "hydra": None, "omegaconf": None, "av": None}
MAX_LINES, MAX_PARAMETERS = 50, 7
MAX_FILES = 6  # in nlvideo/ itself
# Constructors whose every parameter is a documented choice.
MANY_CHOICES = {"VideoResNet", "NonLocalBlock", "TrainClips", "MultiViews"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "nlvideo").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Returns the modules that a file imports, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path)]
    rooms = {part[1] for part in parts if part[0] == "nlvideo" and len(part) > 1 and part[1] != "configs"}
    return {room for room in rooms if (ROOT / "nlvideo" / room).is_dir() or (ROOT / f"nlvideo/{room}.py").is_file()}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    room = room_of(path)
    if room == "__init__":  # names the public places
        return
    floor = next(i for i, rooms in enumerate(FLOORS) if room in rooms)
    allowed = {room}.union(*FLOORS[:floor])
    for other in sorted(rooms_imported(path)):
        assert other in allowed, f"{path.relative_to(ROOT)} imports from {other}, which is not below {room}"


@pytest.mark.parametrize("room", ["models", "data"])
def test_models_and_data_know_neither_each_other_nor_the_config(room):
    forbidden = {"models": "nlvideo.data", "data": "nlvideo.models"}[room], "hydra", "omegaconf", "nlvideo.config"
    for path in (ROOT / "nlvideo" / room).rglob("*.py"):
        found = [name for name in imported(path) if name.startswith(forbidden)]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_imports_have_no_cycle():
    graph = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imported(p) for p in MODULES
    }

    below = {
        # a package may import its own modules, which name it
        name: {other for other in names & graph.keys() - {name} if not name.startswith(f"{other}.")}
        for name, names in graph.items()
    }
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_nothing_imports_the_tools_and_nothing_is_called_utils():
    tools = {path.stem for path in TOOLS}
    for path in MODULES:
        assert not {name.split(".")[0] for name in imported(path)} & (tools | {"tools"}), path
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "misc", "common") or "utils" in p.parts]


def defined(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_each_public_name_has_one_meaning():
    places = defaultdict(list)
    for path in MODULES:
        for name in defined(path) - {"main"}:
            places[name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_private_apis_are_in_their_file(path):
    found = set()
    for name in imported(path):
        library, *parts = name.split(".")
        if library in PRIVATE_APIS and any(part.startswith("_") and not part.startswith("__") for part in parts):
            found.add((library, name))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            text = ast.unparse(node)
            if text.split(".")[0] in PRIVATE_APIS or node.attr in ("_cdata", "_get_node"):
                found.add((text.split(".")[0] if text.split(".")[0] in PRIVATE_APIS else "torch", text))
    for library, name in found:
        assert str(path.relative_to(ROOT)) == PRIVATE_APIS[library], f"{path.relative_to(ROOT)} uses {name}"


@pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path):
    tree = ast.parse(path.read_text())
    constructors = {
        child: node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and child.name == "__init__"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_LINES, f"{path.name}: {node.name} has {length} lines"
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            number = len([name for name in names if name not in ("self", "cls")])
            assert number <= MAX_PARAMETERS or constructors.get(node) in MANY_CHOICES, f"{path.name}: {node.name}"


def test_few_files_lie_outside_the_rooms_and_all_packages_are_installed():
    assert len([path for path in (ROOT / "nlvideo").iterdir() if path.is_file()]) <= MAX_FILES
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in MODULES if path.name == "__init__.py"}
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]", text, re.M | re.S)[1])
    assert set(listed) == packages | {"nlvideo.configs"}
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in MODULES}
    assert folders == packages, "a folder without __init__.py is not installed"
