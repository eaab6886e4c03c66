"""What a command prints: one line for the user's mistakes, a traceback for everything else."""

import pytest

from nlvideo.runtime.errors import (
    RunFailed,
    UserError,
    UserFileExistsError,
    UserFileNotFoundError,
    error_line,
    reporting_errors,
)


@pytest.mark.parametrize("error", [UserError, UserFileNotFoundError, UserFileExistsError, RunFailed])
def test_a_mistake_is_one_line(error, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end, reporting_errors():
        raise error("seed=-1: must not be negative.")
    assert end.value.code == "error: seed=-1: must not be negative."


@pytest.mark.parametrize("error", [ValueError, OSError, KeyError, RuntimeError])
def test_any_other_exception_keeps_its_traceback(error):
    with pytest.raises(error), reporting_errors():
        raise error("a bug")


def test_the_rank_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert error_line(UserError("x")) == "rank 3: error: x"


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("NLVIDEO_TRACEBACK", "1")
    with pytest.raises(SystemExit) as end, reporting_errors():
        raise UserError("x")
    assert "Traceback" in end.value.code and "raise UserError" in end.value.code
    assert end.value.code.endswith("error: x")


def test_they_are_the_built_in_errors_too():
    assert issubclass(UserFileNotFoundError, ValueError) and issubclass(UserFileNotFoundError, FileNotFoundError)
    assert issubclass(UserFileExistsError, FileExistsError) and not issubclass(RunFailed, ValueError)
