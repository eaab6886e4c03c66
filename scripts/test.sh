#!/usr/bin/env bash
# Installs nlvideo with its test extra and runs the linter and the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"  # much of the time is processes that import torch
