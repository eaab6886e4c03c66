#!/usr/bin/env bash
# Installs nlvideo with its test extra and runs the linter, the type checker and the tests; arguments go to pytest:
# scripts/test.sh -m "not slow" is the quick half.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes, one thread each: most tests are many small steps, in which threads only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest -n 2 --dist worksteal --durations=20 "$@"
