#!/usr/bin/env bash
# The study of docs/study.md: the papers' tables in small networks, on data=long_range and data=short_range. Trains two
# runs at a time, one core each, for about two hours. Everything is written to FOLDER; after Ctrl-C the same command
# resumes.
set -euo pipefail
mkdir -p "${1:?usage: scripts/study.sh FOLDER}"
cd "$1"
export OMP_NUM_THREADS=1
trap 'trap - TERM; kill 0; exit 130' INT TERM

table() { # FOLDER TABLE [OVERRIDE...]
    nlvideo-train -m "+ablation=$2" +scale=small "output_dir=outputs/study/$1" "${@:3}"
}
evaluate() { # FOLDER [OVERRIDE...]
    nlvideo-evaluate "checkpoint=outputs/study/$1/*/checkpoint.pt" report=false num_threads=1 "${@:2}"
}
whole_clips() {
    table long_range table_2a data=long_range
    table long_range table_2f data=long_range experiment=c2d_r50_nl5,i3d_r50,i3d_r50_nl5
    table long_range table_2d data=long_range experiment=c2d_r50_nl5_space,c2d_r50_nl5_time
    table long_range table_2c data=long_range experiment=c2d_r50_nl10
    table long_range table_2b data=long_range experiment=c2d_r50_nl1_res3,c2d_r50_nl1_res5,c2d_r50_nl1_res2
}
others() {
    table short_range table_2f data=short_range experiment=c2d_r50,i3d_r50,c2d_r50_nl5,i3d_r50_nl5
    table half_clip table_2c data=long_range data.num_frames=12 experiment=c2d_r50_nl5
    table one_frame table_2c data=long_range data.num_frames=1 experiment=c2d_r50
    # GCNet's blocks in the C2D of the other tables: without a block it only averages over time, while GCNet's own Slow
    # network has temporal convolutions.
    table gcnet gcnet data=long_range model.layout=c2d model.stem=paper data.num_frames=24 data.frame_stride=1 \
        experiment=slow_r50,slow_r50_gc5,slow_r50_snl5
    # A single block in res4 seldom learns the task in 400 steps; does it in three times as many?
    table longer table_2a data=long_range optim.max_steps=1200 seed=1
    table gcnet gcnet data=long_range model.layout=c2d model.stem=paper data.num_frames=24 data.frame_stride=1 \
        experiment=slow_r50_se5,slow_r50_gc_all
}
nlvideo-train experiment=stills_r50 resume=auto
whole_clips &
others & # wait for both, even if a row of one fails
wait %1 && wait %2
evaluate long_range
evaluate short_range
evaluate half_clip data.test.num_clips=3
evaluate one_frame data.test.num_clips=10
evaluate gcnet
evaluate longer
