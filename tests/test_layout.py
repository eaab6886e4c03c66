"""The house keeps its floors: imports go down only, and names say what a module knows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "nlvideo").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_models_and_data_stay_apart_from_each_other_and_from_the_config(path):
    area = path.relative_to(ROOT / "nlvideo").parts[0]
    others = {"models": ("nlvideo.data", "hydra", "omegaconf"), "data": ("nlvideo.models", "hydra", "omegaconf")}
    for name in imported(path):
        assert not name.startswith(others.get(area, ("no such name",))), f"{path} imports {name}"
        assert not name.startswith("tools"), f"{path} imports {name}"


def test_imports_have_no_cycle():
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        # imports under `if TYPE_CHECKING` never run
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                node.body = []
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nlvideo"):
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[name] = found - {name}
    known = set(graph)

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " imports ".join((*above, name))
        for below in sorted(graph[name] & known):
            # a package's __init__ may import its own modules, which name the package in their imports
            if not name.startswith(f"{below}."):
                visit(below, (*above, name))

    for name in sorted(known):
        visit(name, ())


def test_no_module_is_called_utils():
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "misc", "common") or "utils" in p.parts]
