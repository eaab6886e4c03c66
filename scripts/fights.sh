#!/usr/bin/env bash
# Blocks on real footage: fights in 300 surveillance clips of two seconds, five folds, five seeds, for three hours on two
# cores; after Ctrl-C the same command resumes.
#
#     git clone https://github.com/seymanurakti/fight-detection-surv-dataset
#     scripts/fights.sh fight-detection-surv-dataset FOLDER [OVERRIDE...]
set -euo pipefail
usage="usage: scripts/fights.sh VIDEOS FOLDER [OVERRIDE...]"
videos=$(realpath "${1:?$usage}")
root=$(realpath "$(dirname "$0")/..")
mkdir -p "${2:?$usage}"
cd "$2"
shift 2
given=("$@")
export OMP_NUM_THREADS=1

failed=0
run() { # COMMAND...: one that fails does not stop the others. A trap is heeded during `wait`, not during a command.
    "$@" &
    wait $! || failed=1
}
trap 'trap - INT TERM; kill 0; wait; exit 130' INT TERM

train() { # two folds at a time
    seq 0 4 | xargs -P 2 -I {} nlvideo-train -m experiment=c2d_r50 block=none,nl5,gc5 seed=1,2,3,4,5 +scale=small \
        data=list data.root=fights data.train=../folds/train{}.csv data.val=../folds/val{}.csv \
        data.num_frames=24 data.frame_stride=1 data.clip_fps=12 "data.scale_range=[96,120]" data.crop_size=96 \
        "data.test={num_clips: 3, num_crops: 1, short_side: 96, crop_size: 96}" data.num_workers=1 \
        optim.lr=0.01 optim.max_steps=150 optim.warmup_steps=10 validate_every_steps=150 checkpoint_every_steps=150 \
        output_dir=outputs/study/fights/fold-{} "${given[@]}"
}

run python "$root/tools/prepare_videos.py" "$videos" fights --short-side 112
run python "$root/scripts/fights_folds.py" "$videos" folds
run nlvideo-train experiment=stills_r50 resume=auto
run train
run nlvideo-evaluate "checkpoint=outputs/study/fights/*/*/checkpoint.pt" report=false num_threads=1
python "$root/tools/compare_folds.py" outputs/study/fights/fold-* --groups folds/recordings.csv --csv fights.csv
exit $failed
