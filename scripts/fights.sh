#!/usr/bin/env bash
# Blocks on real footage: fights in 300 surveillance clips of two seconds, five folds, five seeds, for two hours on two
# cores; after Ctrl-C the same command resumes. The tables are in docs/study.md.
#
#     git clone https://github.com/seymanurakti/fight-detection-surv-dataset
#     scripts/fights.sh fight-detection-surv-dataset FOLDER [OVERRIDE...]
set -euo pipefail
VIDEOS=$(realpath "${1:?usage: scripts/fights.sh VIDEOS FOLDER [OVERRIDE...]}")
export FOLDER=${2:?usage: scripts/fights.sh VIDEOS FOLDER [OVERRIDE...]} OVERRIDES="${*:3}" OMP_NUM_THREADS=1
ROOT=$(realpath "$(dirname "$0")/..")
mkdir -p "$FOLDER"
cd "$FOLDER"
trap 'trap - TERM; kill 0; exit 130' INT TERM

[[ -e fights/prepared.csv ]] || python "$ROOT/tools/prepare_videos.py" "$VIDEOS" fights --short-side 112
[[ -e folds/val4.csv ]] || python "$ROOT/scripts/fights_folds.py" "$VIDEOS" folds
nlvideo-train experiment=stills_r50 resume=auto

train() { # FOLD
    nlvideo-train -m experiment=c2d_r50 block=none,nl5,gc5 seed=1,2,3,4,5 +scale=small data=list data.root=fights \
        data.train="$PWD/folds/train$1.csv" data.val="$PWD/folds/val$1.csv" \
        data.num_frames=24 data.frame_stride=1 data.clip_fps=12 data.scale_range=[96,120] data.crop_size=96 \
        "data.test={num_clips: 3, num_crops: 1, short_side: 96, crop_size: 96}" data.num_workers=1 \
        optim.lr=0.01 optim.max_steps=150 optim.warmup_steps=10 validate_every_steps=150 checkpoint_every_steps=150 \
        output_dir="outputs/study/fights/fold-$1" $OVERRIDES
}
export -f train
seq 0 4 | xargs -P 2 -I {} bash -c 'train {}'
nlvideo-evaluate "checkpoint=outputs/study/fights/*/*/checkpoint.pt" report=false num_threads=1
python "$ROOT/tools/compare_folds.py" outputs/study/fights/fold-* --csv fights.csv
