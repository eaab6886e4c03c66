"""Packs the files that a job makes into shards."""

import math
import re
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from nlvideo.data.collections.records import resumable
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.video_file import open_bytes, split_member
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import remove_partial_files

NUMBER = "[0-9]" * 5  # in the name of a shard
COMPARED = 2**20  # bytes at a time
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Packer:
    """Moves finished files of a folder into shards in it, `shard_00012.tar`.

    They are packed in the job's order, whatever the order in which they are finished, so a job that is killed and
    resumed makes the same shards. A file is removed once it is in a shard and that is recorded. The caller keeps other
    processes out of its part of the job (see job_lock).

    Args:
        folder: of the files and the shards.
        which: this machine's part of the job, "i/n", which the names of its shards tell.
        size: bytes of files that a shard holds at most, unless a single one is larger.
        order: the items of the job.
        record: called with items and the new names of their files, `shard_00012.tar/NAME`. When it returns, this is on
            the disk.
        folders: names of folders beside the shards that the job makes, which no shard may have.

    Raises:
        UserError: on finish and close, a shard cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        which: str,
        size: int,
        order: Sequence[str],
        record: Callable[[dict[str, str]], None],
        folders: Container[str] = (),
    ) -> None:
        self.folder, self.size, self.order, self.record = folder, size, order, record
        self.stem, self.folders = _stem(which), folders
        shards = sorted(path.name for path in folder.glob(f"{self.stem}_{NUMBER}.tar") if path.is_file())
        self._last = shards[-1] if shards else None
        self._number = int(shards[-1][-9:-4]) + 1 if shards else 0
        self._finished: dict[str, str] = {}
        self._place = 0  # in the order, of the first item that is not finished
        self._held: list[tuple[str, str]] = []  # items and files of the next shard
        self._bytes = 0
        self._left: set[Path] = set()  # folders that files were removed from

    def finish(self, item: str, file: str = "") -> None:
        """Notes that an item is finished, and writes a shard if there are files enough.

        Args:
            item: of the order.
            file: its file, relative to the folder, which may be in a shard already; empty if it has none.
        """
        member = split_member(str(self.folder / file))
        if member is not None:
            if file.startswith(f"{self._last}/"):  # the job may have been killed before it removed the file
                self._unlink(member[1])
            file = ""
        elif file and self._is_packed(file):  # the job was killed before it recorded that
            self._move({item: file}, self._last)
            file = ""
        self._finished[item] = file
        while self._place < len(self.order) and self.order[self._place] in self._finished:
            item = self.order[self._place]
            self._place += 1
            if self._finished[item]:
                self._hold(item, self._finished[item])

    def close(self) -> None:
        """Packs what is left, and removes the folders that this has emptied."""
        self._write()
        remove_emptied(self.folder, self._left)

    def _is_packed(self, file: str) -> bool:
        """Returns whether the last shard holds the very bytes of a file."""
        if self._last is None:
            return False
        try:
            member = open_bytes(str(self.folder / self._last / file))
        except OSError:
            return False
        with member, open(self.folder / file, "rb") as plain:
            while (block := plain.read(COMPARED)) == member.read(COMPARED):
                if not block:
                    return True
        return False

    def _hold(self, item: str, file: str) -> None:
        size = (self.folder / file).stat().st_size
        if self._held and self._bytes + size > self.size:
            self._write()
        self._held.append((item, file))
        self._bytes += size

    def _write(self) -> None:
        if not self._held:
            return
        while (name := f"{self.stem}_{self._number:05}.tar") in self.folders or (self.folder / name).is_dir():
            self._number += 1
        with resumable(self.folder / name):
            write_shard(self.folder / name, [(file, self.folder / file) for _, file in self._held])
        self._move(dict(self._held), name)
        self._number += 1
        self._held, self._bytes = [], 0

    def _move(self, files: dict[str, str], shard: str | None) -> None:
        """Records that the files of some items are in a shard, and then removes them."""
        self.record({item: f"{shard}/{file}" for item, file in files.items()})
        for file in files.values():
            self._unlink(file)

    def _unlink(self, file: str) -> None:
        path = self.folder / file
        if path.exists():
            path.unlink()
            self._left.add(path.parent)


def remove_partial(folder: Path, which: str, files: Iterable[str]) -> None:
    """Removes what a killed job has left of its shards and of files, with the folders that this empties.

    Args:
        files: that this part of the job makes, relative to the folder. The caller is alone in it.
    """
    remove_partial_files(folder, re.compile(rf"{_stem(which)}_{NUMBER}\.tar").fullmatch)
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault((folder / file).parent, set()).add(Path(file).name)
    remove_emptied(folder, [below for below, made in names.items() if remove_partial_files(below, made.__contains__)])


def remove_emptied(folder: Path, left: Iterable[Path]) -> None:
    """Removes folders below a folder, and those that hold them, where nothing is in them."""
    below = {path for inner in left for path in (inner, *inner.parents) if folder in path.parents}
    for path in sorted(below, reverse=True):  # the inner ones first
        with suppress(OSError):  # another part of the job has put something there
            path.rmdir()


def _stem(which: str) -> str:
    return "shard" if which == "1/1" else f"shard_{which.replace('/', '-of-')}"


def size_in_bytes(text: str) -> int:
    """Returns a size such as 1GB, 500MB or 1.5 GB in bytes; units are decimal.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size < math.inf:
        raise UserError(f"--shards {text}: give a size, such as 1GB or 500MB.")
    return round(size)
