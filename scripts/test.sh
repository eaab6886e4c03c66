#!/usr/bin/env bash
# Installs nlvideo with its test extra and runs the linter, the type checker and the tests; arguments go to pytest:
# scripts/test.sh -m "not slow" is the quick half.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# One thread each: most tests are many small steps, in which threads only wait for each other. A third process on two
# cores uses the time in which some tests wait for others to come late or to be killed.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest -n 3 --dist worksteal --durations=20 "$@"
