"""Runs every command of README.md and docs/*.md to its end, in small forms, on stand-ins for data, stores and cluster.

    python tests/docs.py FOLDER                  # all documents
    python tests/docs.py FOLDER --only data.md   # one document

The commands are those in ```bash blocks, the programs in ```python blocks, and the benchmarks that the text names, in
the order of the documents, each document in a folder of its own that looks like a checkout. documented/small_forms.py
has what each becomes, documented/stand_ins.py and documented/services.py what it finds, NOT_RUN in
documented/commands.py what cannot be run and why. The exit code is 1 if a command failed, or is of a kind that is not
known there.
"""

import argparse
import csv
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from documented.commands import Command, documents, everything_to_run, not_run
from documented.running import environment_of, run, shell
from documented.services import write_programs, write_programs_of_the_study
from documented.small_forms import small_bash
from documented.stand_ins import BEFORE, copy_checkout, prepare, train_runs, write_imagenet_weights, write_ours
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
            for command in BEFORE.get(document, ()):
                self.must_run(small_bash(command), folder)
        return folder

    def run(self, command: Command) -> str:
        """Runs a command and prints what came of it; returns its exit code, or why it was not run."""
        result, shown = not_run(command), command.text.strip().splitlines()[-1]
        if result is not None:
            print(f"[{result}] {command.document}: {shown}", flush=True)
            return result
        folder, environment = self.folder_of(command), self.environment
        if "study.sh" in command.text:
            environment = environment_of(self.folder, self.folder / "bin_of_the_study")
        if "dry_run=true" in command.text and not (self.folder / "torch").exists():
            write_imagenet_weights(self.folder / "torch")
        done = run(command, folder, environment)
        print(f"[{done.code}] {command.document}: {shown}", flush=True)
        if done.code:
            log = self.folder / f"failed_{len(list(self.folder.glob('failed_*')))}.log"
            log.write_text(f"{done.ran}\n{done.output}")
            print(f"    ran as: {done.ran}\n{done.output[-2000:]}\n    all of its output: {log}", flush=True)
        return str(done.code)


class Row(NamedTuple):
    """What came of one command; other work on the machine changes its CPU seconds little."""

    document: str
    command: str
    seconds: float
    cpu_seconds: float
    result: str


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
            result = place.run(command)
            spent = round(time.monotonic() - started, 1), round(cpu_of_children() - used, 1)
            rows.append(Row(command.document, command.text, *spent, result))
            writer.writerow(rows[-1])
            file.flush()
    return rows


def cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def show(rows: list[Row], seconds: float) -> None:
    table = Table("document", "command", "s", "CPU s", "exit code")
    for row in rows:
        command = row.command.strip().splitlines()[-1]
        table.add_row(row.document, command, f"{row.seconds:.0f}", f"{row.cpu_seconds:.0f}", row.result)
    console = Console(width=160, markup=False)
    console.print(table)
    per_document = Table("document", "commands", "s", "CPU s")
    for name in dict.fromkeys(row.document for row in rows):
        here = [row for row in rows if row.document == name]
        sums = (sum(row.seconds for row in here), sum(row.cpu_seconds for row in here))
        per_document.add_row(name, str(len(here)), *(f"{total:.0f}" for total in sums))
    console.print(per_document)
    console.print(f"{len(rows)} commands, {seconds / 60:.1f} minutes with the stand-ins")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="created; must not exist")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="documents, such as data.md")
    arguments = parser.parse_args()
    folder, started = arguments.folder.absolute(), time.monotonic()
    if folder.exists():
        sys.exit(f"error: {folder} exists already.")
    chosen = [file for file in documents() if not arguments.only or file.name in arguments.only]
    rows = run_all(folder, [command for file in chosen for command in everything_to_run(file)])
    show(rows, time.monotonic() - started)
    failed = [row for row in rows if row.result != "0" and not row.result.startswith("not run")]
    sys.exit(f"{len(failed)} of {len(rows)} commands failed." if failed else None)


if __name__ == "__main__":
    main()
