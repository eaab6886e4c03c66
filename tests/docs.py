"""Runs every command of README.md and docs/*.md to its end, in small forms, on stand-ins for data, stores and cluster.

    python tests/docs.py FOLDER                  # all documents
    python tests/docs.py FOLDER --only data.md   # one document
    python tests/docs.py --list                  # what each command is run as, or why it is not; runs nothing

The commands are those in ```bash blocks, the programs in ```python blocks, and the benchmarks that the text names, in
the order of the documents, each document in a folder of its own that looks like a checkout. documented/small_forms.py
has what each becomes, documented/stand_ins.py and documented/services.py what it finds, NOT_RUN in
documented/commands.py what cannot be run and why, NOT_COMMANDS which blocks are none. The exit code is 1 if a command
failed, or is of a kind that is not known there.
"""

import argparse
import csv
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from documented.commands import Command, documents, everything_to_run, not_commands, not_run
from documented.running import environment_of, run, shell
from documented.services import write_programs, write_programs_of_the_study
from documented.small_forms import small, small_bash
from documented.stand_ins import (
    BEFORE,
    copy_checkout,
    prepare,
    train_runs,
    write_imagenet_weights,
    write_ours,
    write_resnets,
)
from rich.console import Console
from rich.table import Table


class Documents:
    """The folder in which documents run: `base` with the stand-ins, and a copy of it for each document."""

    def __init__(self, folder: Path, with_runs: bool):
        self.folder = folder
        folder.mkdir(parents=True)
        self.environment = environment_of(folder)
        write_programs(folder / "bin")
        write_programs_of_the_study(folder / "bin_of_the_study")
        prepare(folder / "base")
        if with_runs:
            train_runs(folder / "base", self.must_run)

    def must_run(self, command: str, folder: Path) -> None:
        done = shell(command, folder, self.environment)
        if done.code:
            sys.exit(f"{command}\n{done.output}")

    def folder_of(self, command: Command) -> Path:
        """Returns the folder of a command's document, created with what comes before its commands."""
        if "scripts/test.sh" in command.text:  # to the linter, the folder `videos` of the stand-ins is a package
            if not (self.folder / "checkout").exists():
                copy_checkout(self.folder / "checkout")
            return self.folder / "checkout"
        document = command.document
        folder = self.folder / Path(document).stem
        if not folder.exists():
            shutil.copytree(self.folder / "base", folder, symlinks=True)
            if document == "weights.md":
                write_ours(folder)
            if document in ("README.md", "detection.md"):
                write_resnets(folder)
            for command in BEFORE.get(document, ()):
                self.must_run(small_bash(command), folder)
        return folder

    def run(self, command: Command) -> tuple[str, str]:
        """Runs a command; returns its exit code, or why it was not run, and what to print of one that failed."""
        reason = not_run(command)
        if reason is not None:
            return reason, ""
        folder, environment = self.folder_of(command), self.environment
        if "study.sh" in command.text or "fights.sh" in command.text:
            environment = environment_of(self.folder, self.folder / "bin_of_the_study")
        if "dry_run=true" in command.text and not (self.folder / "torch").exists():
            write_imagenet_weights(self.folder / "torch")
        done = run(command, folder, environment)
        if not done.code:
            return "0", ""
        log = self.folder / f"failed_{len(list(self.folder.glob('failed_*')))}.log"
        log.write_text(f"{done.ran}\n{done.output}")
        return str(done.code), f"    ran as: {done.ran}\n{done.output[-2000:]}\n    all of its output: {log}\n"


class Row(NamedTuple):
    """What came of one command; other work on the machine changes its CPU seconds little."""

    document: str
    command: str
    seconds: float
    cpu_seconds: float
    result: str  # an exit code, or why it was not run

    @property
    def last_line(self) -> str:
        """What to print of a command; of a program, its last line."""
        return self.command.strip().splitlines()[-1]

    @property
    def failed(self) -> bool:
        return self.result != "0" and not self.result.startswith("not run")


def run_all(folder: Path, commands: list[Command], with_runs: bool = True) -> list[Row]:
    """Runs commands one after the other; writes commands.csv as it goes.

    Args:
        folder: created.
        commands: of one document after the other.
        with_runs: whether the commands need the runs of stand_ins.train_runs, which take half a minute.
    """
    place, rows = Documents(folder, with_runs), []
    with open(folder / "commands.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for command in commands:
            started, used = time.monotonic(), cpu_of_children()
            result, output = place.run(command)
            spent = round(time.monotonic() - started, 1), round(cpu_of_children() - used, 1)
            row = Row(command.document, command.text, *spent, result)
            print(f"[{result}] {spent[0]:.0f} s, CPU {spent[1]:.0f} s: {row.document}: {row.last_line}", flush=True)
            print(output, end="", flush=True)
            rows.append(row)
            writer.writerow(row)
            file.flush()
    return rows


def cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


SLOWEST = 10  # commands in the last table


def show(rows: list[Row], seconds: float) -> None:
    """Prints each command, the seconds of each document, the slowest commands, and what was not run and why."""
    console = Console(width=160, markup=False)
    console.print(table_of(rows))
    per_document = Table("document", "commands", "s", "CPU s")
    for name in dict.fromkeys(row.document for row in rows):
        here = [row for row in rows if row.document == name]
        sums = (sum(row.seconds for row in here), sum(row.cpu_seconds for row in here))
        per_document.add_row(name, str(len(here)), *(f"{total:.0f}" for total in sums))
    console.print(per_document)
    console.print(table_of(sorted(rows, key=lambda row: -row.seconds)[:SLOWEST], f"the {SLOWEST} slowest"))
    for row in rows:
        if row.result.startswith("not run"):
            console.print(f"{row.result}: {row.document}: {row.last_line}", soft_wrap=True)
    cpu = sum(row.cpu_seconds for row in rows) / 60
    console.print(
        f"{len(rows)} commands, {seconds / 60:.1f} minutes with the stand-ins, of which CPU {cpu:.1f} minutes"
    )


def table_of(rows: list[Row], title: str | None = None) -> Table:
    table = Table("document", "command", "s", "CPU s", "exit code", title=title)
    for row in rows:
        table.add_row(row.document, row.last_line, f"{row.seconds:.0f}", f"{row.cpu_seconds:.0f}", row.result)
    return table


def show_list(chosen: list[Path]) -> None:
    """Prints what each command would be run as, and each block that is no command, with the reasons."""
    for file in chosen:
        for command in everything_to_run(file):
            lines = (not_run(command) or small(command)).strip().splitlines()
            print(f"{file.name}: {command.text.strip().splitlines()[-1]}", *lines, sep="\n    ")
        for language, reason in not_commands(file):
            print(f"{file.name}: a block of {language}\n    not run: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="created; must not exist")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="documents, such as data.md")
    parser.add_argument("--list", action="store_true", help="print what would be run, and as what")
    arguments = parser.parse_args()
    chosen = [file for file in documents() if not arguments.only or file.name in arguments.only]
    if arguments.list:
        return show_list(chosen)
    if arguments.folder is None or arguments.folder.exists():
        parser.error("FOLDER must be given, and not exist.")
    folder, started = arguments.folder.absolute(), time.monotonic()
    rows = run_all(folder, [command for file in chosen for command in everything_to_run(file)])
    show(rows, time.monotonic() - started)
    failed = [row for row in rows if row.failed]
    sys.exit(f"{len(failed)} of {len(rows)} commands failed." if failed else None)


if __name__ == "__main__":
    main()
