#!/usr/bin/env bash
# Makes each task of srun one rank: sets what torchrun would set, from SLURM's variables, and runs the command.
#   srun --nodes=2 --ntasks-per-node=8 --gpus-per-task=1 --cpus-per-task=8 --kill-on-bad-exit=1 \
#     scripts/slurm/task.sh nlvideo-train experiment=i3d_r50_nl5 data.root=/data/kinetics400
# Rank 0 is on the first node of the step, where the others find it at MASTER_PORT. Set MASTER_ADDR and MASTER_PORT
# yourself where `scontrol` is missing, as in a container, or where the port is taken.
set -euo pipefail

IFS=, read -ra tasks_here <<< "$SLURM_GTIDS" # their numbers
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE="${#tasks_here[@]}"
if [ -z "${MASTER_ADDR:-}" ]; then
  nodes=$(scontrol show hostnames "$SLURM_STEP_NODELIST")
  export MASTER_ADDR="${nodes%%$'\n'*}"
fi
export MASTER_PORT="${MASTER_PORT:-$((20000 + (SLURM_JOB_ID + SLURM_STEP_ID) % 20000))}"
exec "$@"
