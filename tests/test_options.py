"""docs/options.md lists every option with its default and source, and every choice, and nothing else."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml
from omegaconf import MISSING

from nlvideo.build.model import BLOCKS
from nlvideo.config import checks, extract_checks
from nlvideo.config import schema as config
from nlvideo.data.clips import view_sampling
from nlvideo.data.decoding import opening as decode
from nlvideo.data.lists import published
from nlvideo.data.synthetic import writing as synthetic
from nlvideo.models import global_context, non_local, resnet

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/options.md").read_text()
COMMANDS = {
    "nlvideo-train": config.TrainConfig,
    "nlvideo-evaluate": config.EvaluateConfig,
    "nlvideo-predict": config.PredictConfig,
    "nlvideo-extract": config.ExtractConfig,
}
OPTION_HEADER = ["key", "default", "what", "source"]
GROUPS = ("model", "block", "data", "optim", "scale", "ablation")
TABLES = {
    "layout": resnet.LAYOUTS,
    "stem": resnet.STEMS,
    "kind": ("none", *BLOCKS),
    "mode": non_local.MODES,
    "extent": non_local.EXTENTS,
    "clip_sampling": view_sampling.CLIP_SAMPLINGS,
    "format": published.FORMATS,
}
LISTED = {  # choices that are listed in the row of their option
    "resume": checks.RESUMES,
    "model.depth": resnet.DEPTHS,
    "model.activation_checkpointing": resnet.STAGES,
    "block.pool": non_local.POOLS,
    "block.init": non_local.INITS,
    "block.pooling": global_context.POOLINGS,
    "block.fusion": global_context.FUSIONS,
    "data.decoder": decode.DECODERS,
    "data.synthetic.kind": synthetic.SETS,
    "data.test.num_crops": view_sampling.NUM_CROPS,
    "data.test.pooling": checks.VIEW_POOLINGS,
    "optim.schedule": checks.SCHEDULES,
    "precision": checks.PRECISIONS,
    "logger": checks.LOGGERS,
    "best_metric": {*checks.METRICS[False], *checks.METRICS[True]},
    "model.freeze": resnet.PARTS,
    "data.crop": checks.CROPS,
    "data.augment": checks.AUGMENTATIONS,
    "data.balance": checks.BALANCES,
    "optim.kind": checks.OPTIMIZERS,
    "optim.class_weights": checks.CLASS_WEIGHTS,
    "preset": extract_checks.FEATURE_PRESETS,
    "layer": extract_checks.FEATURE_LAYERS,
    "crops": extract_checks.FEATURE_CROPS,
    "format": extract_checks.FEATURE_FORMATS,
    "dtype": extract_checks.FEATURE_DTYPES,
}


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Returns (header, rows) of each table in a text."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines()]
        assert all(len(row) == len(header) for row in rows), f"a row of {header} has a different number of cells"
        found.append((header, rows))
    return found


def section(command: str) -> str:
    return re.search(rf"^## {command}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)[1]


def option_rows(command: str) -> list[list[str]]:
    return [row for header, rows in tables(section(command)) if header == OPTION_HEADER for row in rows]


def table_of(name: str) -> list[list[str]]:
    (rows,) = [rows for header, rows in tables(TEXT) if header[0] == name]
    return rows


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def options(cls: type, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: default} of a config; an optional group is a key itself, besides the keys in it."""
    found, types = {}, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", types[field.name]
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        if not dataclasses.is_dataclass(default):
            found[key] = default
        for group in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(group):
                found |= options(group, f"{key}.")
    return found


def rendered(value: object) -> str:
    """Returns a default as in the document: one line of YAML, ??? for a required value."""
    if value == MISSING:
        return MISSING
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_listed_once_with_its_default_and_source(command):
    rows, wanted = option_rows(command), options(COMMANDS[command])
    if command != "nlvideo-train":  # its section documents data.*
        wanted = {key: default for key, default in wanted.items() if not key.startswith("data.")}
    keys = [key for row in rows for key in names_in(row[0])]
    assert sorted(keys) == sorted(wanted)
    assert {row[0]: row[1] for row in rows} == {f"`{key}`": f"`{rendered(value)}`" for key, value in wanted.items()}
    for key, _, what, source in rows:
        assert what and source, f"{key} lacks a description or a source"


def test_a_group_has_its_own_table():
    for group in ("model", "block", "data", "optim"):
        text = section("nlvideo-train").split(f"### {group}\n")[1].split("\n### ")[0]
        ((_, rows),) = tables(text)
        assert rows and all(row[0].startswith(f"`{group}.") for row in rows), group


@pytest.mark.parametrize("name", TABLES)
def test_every_choice_has_a_row(name):
    rows = table_of(name)
    assert [names_in(row[0]) for row in rows] == [[choice] for choice in TABLES[name]]
    assert all(row[-1] and row[-2] for row in rows)


def test_small_choices_are_listed_with_their_option():
    for command in COMMANDS:
        for key, _, what, _ in option_rows(command):
            missing = {str(choice) for choice in LISTED.get(key.strip("`"), ())} - set(names_in(what))
            assert not missing, f"{key} of {command} lacks {missing}"


def test_block_kinds_take_the_documented_options():
    for kind, takes, *_ in table_of("kind"):
        cls, wanted = BLOCKS.get(kind.strip("`"), (None, ()))
        wanted = {*wanted, *(["inside"] if cls else []), *(["group_frames"] if cls is non_local.NonLocalBlock else [])}
        assert set(names_in(takes)) == wanted, kind


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_a_group_is_described_as_in_its_header(group):
    rows = {row[0].strip("`"): row[1] for row in table_of(f"{group}=")}
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
    for name, what in rows.items():
        lines = (ROOT / "configs" / group / f"{name}.yaml").read_text().splitlines()
        header = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
        assert what and what in header, f"{group}={name}: {what!r} is not in the comment of its file"
