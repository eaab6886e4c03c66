#!/usr/bin/env bash
# Installs nlvideo, generates a small data set of mp4 files, trains a non-local I3D on it and evaluates the checkpoint
# with 10 clips x 3 crops. Run it again to resume. Arguments are keys of the training: scripts/quickstart.sh block=none.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh
.venv/bin/nlvideo-train experiment=quickstart resume=auto "$@"
.venv/bin/nlvideo-evaluate checkpoint=outputs/quickstart/checkpoint.pt
cat <<'END'
checkpoint   outputs/quickstart/checkpoint.pt
TensorBoard  .venv/bin/tensorboard --logdir outputs/quickstart/tensorboard
curves       outputs/quickstart/curves.png
END
