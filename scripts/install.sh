#!/usr/bin/env bash
# Makes .venv if it is missing and installs nlvideo into it; arguments are extras, as in `scripts/install.sh test`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --editable ".${1:+[$1]}"
