#!/usr/bin/env bash
# The study of docs/study.md: the papers' tables in small networks, on data=long_range and data=short_range. Trains two
# runs at a time, one core each, for about twelve hours. Everything is written to FOLDER; after Ctrl-C the same command
# resumes.
#
#     scripts/study.sh FOLDER [OVERRIDE...]      # all of it
#     scripts/study.sh FOLDER seed=1             # one seed of each row
#     SWEEPS=table_2a scripts/study.sh FOLDER    # the sweeps whose line below contains a text
set -euo pipefail
export FOLDER=${1:?usage: scripts/study.sh FOLDER [OVERRIDE...]}
shift
export OVERRIDES="$*" OMP_NUM_THREADS=1
mkdir -p "$FOLDER"
cd "$FOLDER"
trap 'trap - TERM; kill 0; exit 130' INT TERM

# A sweep a line: its folder below outputs/study, its table, its overrides.
sweeps() {
    # GCNet's blocks in the C2D of the other tables: without a block it only averages over time, while GCNet's own Slow
    # network has temporal convolutions.
    local gcnet="model.layout=c2d model.stem=paper data.num_frames=24 data.frame_stride=1 data=long_range"
    local end_disc="data=long_range data.train=train_end.csv data.val=val_end.csv data.classes=classes_end.txt"
    local narrow="model.width=8"
    cat <<LINES
long_range table_2a data=long_range
long_range table_2c data=long_range experiment=c2d_r50_nl5,c2d_r50_nl10
long_range table_2d data=long_range experiment=c2d_r50_nl5_space,c2d_r50_nl5_time
long_range table_2f data=long_range experiment=i3d_r50,i3d_r50_nl5
long_range table_2b data=long_range experiment=c2d_r50_nl1_res3,c2d_r50_nl1_res5,c2d_r50_nl1_res2
end_disc table_2c $end_disc experiment=c2d_r50_nl5
short_range table_2f data=short_range experiment=c2d_r50,i3d_r50,c2d_r50_nl5,i3d_r50_nl5
gcnet gcnet $gcnet experiment=slow_r50,slow_r50_nl5,slow_r50_snl5,slow_r50_gc5,slow_r50_se5
gcnet gcnet $gcnet experiment=slow_r50_snl_all,slow_r50_gc_all
gcnet gcnet $gcnet experiment=slow_r50_gc5_r8,slow_r50_gc5_r16,slow_r50_gc5_r32
gcnet gcnet $gcnet experiment=slow_r50_gc5_average,slow_r50_gc5_mul,slow_r50_gc5_average_mul
r101 table_2e $narrow data=long_range
r101 table_2c $narrow data=long_range experiment=c2d_r101_nl1,c2d_r101_nl10
r101 table_2d $narrow data=long_range experiment=c2d_r101_nl5_space,c2d_r101_nl5_time
r101 table_2f $narrow data=long_range experiment=i3d_r101_nl5
half_clip table_2c data=long_range data.num_frames=12 experiment=c2d_r50_nl5
one_frame table_2c data=long_range data.num_frames=1 experiment=c2d_r50
LINES
}

train() { # FOLDER TABLE [OVERRIDE...]
    # A sweep's own list of seeds or rows gives way to one in OVERRIDES.
    nlvideo-train -m "+ablation=$2" +scale=small "output_dir=outputs/study/$1" "${@:3}" $OVERRIDES
}
evaluate() { # FOLDER [OVERRIDE...]
    [[ ! -e outputs/study/$1 ]] || # left out by SWEEPS
        nlvideo-evaluate "checkpoint=outputs/study/$1/*/checkpoint.pt" report=false num_threads=1 "${@:2}"
}
export -f train

nlvideo-train experiment=stills_r50 resume=auto
nlvideo-train experiment=stills_r101 model.width=8 resume=auto
# The next sweep starts when one of the two ends; one that fails does not stop the others.
sweeps | grep -- "${SWEEPS:-.}" | xargs -P 2 -I {} bash -c 'train {}'
evaluate long_range
evaluate end_disc
evaluate short_range
evaluate gcnet
evaluate r101
evaluate half_clip data.test.num_clips=3
evaluate one_frame data.test.num_clips=10
