"""Finds the files of videos that a list knows by an id and a class only."""

import os
from collections.abc import Iterator, Sequence

from nlvideo.data.lists.list_source import has_video_suffix
from nlvideo.data.stores.addresses import is_address
from nlvideo.runtime.errors import UserError

SPLIT_FOLDERS = {True: ("train", "training"), False: ("val", "validation", "validate", "valid")}


class VideoFiles:
    """The videos in a folder and in its folders of classes, each listed once and only when it is asked for.

    If it has a folder called train or val, that one is searched too: ROOT/train/CLASS/ID.mp4.

    Args:
        root: the folder; it may be missing and then holds nothing.
        training: whether to search ROOT/train or ROOT/val; None: both.
    """

    def __init__(self, root: str, training: bool | None):
        if is_address(root):
            raise UserError(
                f"Lists that name videos by an id find them in folders of this machine, and not in {root}: write lists "
                "of paths and labels (data=list)."
            )
        self.root = root
        self._listed: dict[str, dict[str, str]] = {}  # folder, relative to root -> stem -> file name
        self._classes: dict[str, list[str]] = {}  # class, letters and digits alone -> its folders
        wanted = [name for key in (True, False) if training in (None, key) for name in SPLIT_FOLDERS[key]]
        self._tops = [""] + [name for name in wanted if os.path.isdir(os.path.join(root, name))]
        for top in self._tops:
            for name in self._names(top):
                if not has_video_suffix(name):
                    self._classes.setdefault(_plain(name), []).append(os.path.join(top, name))

    def find(self, label: str, stems: Sequence[str]) -> str | None:
        """Returns the path, relative to the root, of the first file or folder of frames with one of these stems.

        Folders of the class come first. They may be called as the class or as downloaders spell it: with underscores
        for spaces, without quotes, parentheses and slashes, in any case.
        """
        for folder in (*self._classes.get(_plain(label), ()), *self._tops):
            there = self._stems(folder)
            for stem in stems:
                if stem in there:
                    return os.path.join(folder, there[stem])
        return None

    def _stems(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            found: dict[str, str] = {}
            for name in sorted(self._names(folder)):
                found.setdefault(os.path.splitext(name)[0] if has_video_suffix(name) else name, name)
            self._listed[folder] = found
        return self._listed[folder]

    def _names(self, folder: str) -> Iterator[str]:
        """Yields the videos and folders in a folder."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and (has_video_suffix(entry.name) or entry.is_dir()):
                        yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
