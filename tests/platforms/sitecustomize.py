"""Takes away from nlvideo what another system lacks. Python runs this as it starts, workers too: it is on PYTHONPATH.

Only nlvideo's modules miss it. Torch and the standard library have code of their own for those systems, which does not
run on this one. Files of Linux are missing for all, and on Windows no file that is open can be replaced or removed.
"""

import builtins
import errno
import io
import multiprocessing
import os
import types
from typing import Any

LACKING = {
    "darwin": {
        "os": {"sched_getaffinity", "sched_setaffinity"},
    },
    "win32": {
        "os": {"sched_getaffinity", "sched_setaffinity", "fork", "killpg", "getpgid", "setsid", "getuid", "geteuid",
               "uname", "nice", "sysconf", "statvfs", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "WIFEXITED"},
        "signal": {"SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGKILL", "setitimer", "alarm",
                   "ITIMER_REAL", "pthread_sigmask", "pthread_kill", "sigwait"},
    },
}  # fmt: skip
NO_MODULES = {"darwin": set(), "win32": {"fcntl", "resource", "pwd", "grp", "termios"}}
LINUX_FOLDERS = ("/proc", "/sys/fs/cgroup", "/dev/shm")


class Shown(types.ModuleType):
    """A module as nlvideo sees it: some names are missing, others are replaced."""

    def __init__(self, module: types.ModuleType, lacking: set[str], changed: dict[str, Any]):
        vars(self).update(_module=module, _lacking=lacking, _changed=changed)

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return self._changed.get(name, getattr(self._module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def take_away(system: str) -> None:
    """Makes nlvideo see `system`, a value of sys.platform."""
    lacking = LACKING[system]
    changed = {"sys": {"platform": system}, "os": {}, "signal": {}}
    if system == "win32":
        changed["os"] = {"open": open_no_folder, "fsync": sync_writable, "link": refuse_link, "kill": refuse_kill}
    shown = {name: Shown(__import__(name), lacking.get(name, set()), changed[name]) for name in changed}
    real = builtins.__import__

    def imported(name, globals=None, locals=None, fromlist=(), level=0):
        if ((globals or {}).get("__package__") or "").split(".")[0] == "nlvideo":
            if name in NO_MODULES[system]:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name == "msvcrt" and system == "win32":
                return windows_locks()
            if name in shown:
                return shown[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = imported
    hide_files_of_linux()
    if system == "win32":
        keep_open_files()
    multiprocessing.set_start_method("spawn")


def hide_files_of_linux() -> None:
    def hidden(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(LINUX_FOLDERS)

    def refusing(function):
        def call(path, *args, **options):
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return function(path, *args, **options)

        return call

    os.stat = refusing(os.stat)
    io.open = builtins.open = refusing(builtins.open)


def keep_open_files() -> None:
    """Refuses to replace and to remove files that this process has open, as Windows does."""
    listed, target = os.listdir, os.readlink

    def is_open(path: Any) -> bool:
        wanted = os.path.realpath(path)
        for number in listed("/proc/self/fd"):
            try:
                if target(f"/proc/self/fd/{number}") == wanted:
                    return True
            except OSError:  # that of the listing itself
                pass
        return False

    def refusing(function):
        def call(*paths, **options):
            for path in paths:
                if "dir_fd" not in options and isinstance(path, str | os.PathLike) and is_open(path):
                    raise PermissionError(errno.EACCES, "The file is being used by another process", os.fspath(path))
            return function(*paths, **options)

        return call

    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, refusing(getattr(os, name)))


def open_no_folder(path, flags, *args, **options):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return os.open(path, flags, *args, **options)


def sync_writable(descriptor: int) -> None:
    import fcntl

    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    os.fsync(descriptor)


def windows_locks() -> types.ModuleType:
    """Returns a module msvcrt, made of the locks of this system."""
    import fcntl

    def locking(descriptor: int, mode: int, _num_bytes: int) -> None:
        fcntl.lockf(descriptor, mode)

    module = types.ModuleType("msvcrt")
    vars(module).update(LK_LOCK=fcntl.LOCK_EX, LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB, locking=locking)
    return module


def refuse_link(*paths, **options) -> None:
    raise OSError(errno.EPERM, "no links on FAT and exFAT")


def refuse_kill(*arguments) -> None:
    raise AssertionError("os.kill ends a process at once on Windows")


if "NLVIDEO_TEST_SYSTEM" in os.environ:
    take_away(os.environ["NLVIDEO_TEST_SYSTEM"])
