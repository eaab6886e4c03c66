#!/usr/bin/env bash
# The study of docs/study.md: the papers' tables in small networks, on data=long_range and data=short_range. Trains two
# runs at a time, one core each, for about twelve hours. Everything is written to FOLDER; after Ctrl-C the same command
# resumes.
#
#     scripts/study.sh FOLDER [OVERRIDE...]      # all of it
#     scripts/study.sh FOLDER seed=1             # one seed of each row
#     SWEEPS=table_2a scripts/study.sh FOLDER    # the sweeps whose line below contains a text
set -euo pipefail
mkdir -p "${1:?usage: scripts/study.sh FOLDER [OVERRIDE...]}"
cd "$1"
shift
given=("$@")
export OMP_NUM_THREADS=1

failed=0
run() { # COMMAND...: one that fails does not stop the others. A trap is heeded during `wait`, not during a command.
    "$@" &
    wait $! || failed=1
}
trap 'trap - INT TERM; kill 0; wait; exit 130' INT TERM

# A sweep a line: its folder below outputs/study, its table, its overrides. Three seeds leave the rows with five open.
sweeps() {
    local five="seed=1,2,3,4,5" narrow="model.width=8"
    # GCNet's blocks in the C2D of the other tables: without a block it only averages over time, while GCNet's own Slow
    # network has temporal convolutions.
    local gcnet="model.layout=c2d model.stem=paper data.num_frames=24 data.frame_stride=1 data=long_range"
    local end_disc="data=long_range data.train=train_end.csv data.val=val_end.csv data.classes=classes_end.txt"
    cat <<LINES
long_range table_2a data=long_range experiment=c2d_r50,c2d_r50_nl1 $five
long_range table_2a data=long_range experiment=c2d_r50_nl1_gaussian,c2d_r50_nl1_dot_product,c2d_r50_nl1_concatenation
long_range table_2c data=long_range experiment=c2d_r50_nl5 $five
long_range table_2c data=long_range experiment=c2d_r50_nl10
long_range table_2d data=long_range experiment=c2d_r50_nl5_space,c2d_r50_nl5_time
long_range table_2f data=long_range experiment=i3d_r50,i3d_r50_nl5
long_range table_2b data=long_range experiment=c2d_r50_nl1_res3,c2d_r50_nl1_res5,c2d_r50_nl1_res2
end_disc table_2c $end_disc experiment=c2d_r50_nl5 $five
short_range table_2f data=short_range experiment=c2d_r50,i3d_r50,c2d_r50_nl5,i3d_r50_nl5
gcnet gcnet $gcnet experiment=slow_r50_gc5 $five
gcnet gcnet $gcnet experiment=slow_r50_snl5,slow_r50_se5
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

# Table 2g: videos and clips four times as long, each row from its row of Table 2f.
longer_clips() {
    local long="data=long_range data.root=outputs/long_range_96 data.num_frames=96 data.synthetic.num_frames=96"
    long="$long data.synthetic.gap_frames=48 data.synthetic.num_train=2880"
    long="$long optim.lr=0.0075 optim.max_steps=400 validate_every_steps=100"
    local row start
    for row in c2d_r50 i3d_r50 i3d_r50_nl5 c2d_r101 i3d_r101 i3d_r101_nl5; do
        case $row in
        *r50*) start="long_clip table_2g $long model.pretrained=outputs/study/long_range" ;;
        *) start="long_clip_r101 table_2g $long model.width=8 model.pretrained=outputs/study/r101" ;;
        esac
        echo "$start/experiment-$row+seed-"'${seed}'"/checkpoint.pt" "experiment=${row}_128x1_paper"
    done
}

# A sweep's own list of seeds or rows gives way to one that is given.
train() { # PART: the sweeps of a function above, two at a time
    local line
    while read -r line; do
        if [[ $line == *"${SWEEPS:-}"* ]]; then printf '%s\0' "$line"; fi
    done < <("$1") | xargs -0 -P 2 -I {} bash -c '
        read -ra words <<<"$1"
        nlvideo-train -m "+ablation=${words[1]}" +scale=small "output_dir=outputs/study/${words[0]}" \
            "${words[@]:2}" "${@:2}"' train {} "${given[@]}"
}
evaluate() { # FOLDER [OVERRIDE...]
    if compgen -G "outputs/study/$1/*/checkpoint.pt" >/dev/null; then # else left out by SWEEPS
        run nlvideo-evaluate "checkpoint=outputs/study/$1/*/checkpoint.pt" report=false num_threads=1 "${@:2}"
    fi
}
# Without blocks and with non-local ones, GCNet's rows are those of Table 2c in everything but their name.
share_rows() {
    local run copy
    [[ -e outputs/study/gcnet ]] || return 0 # left out by SWEEPS
    for run in outputs/study/long_range/experiment-c2d_r50{,_nl5}+seed-*; do
        copy=outputs/study/gcnet/$(basename "${run/c2d/slow}")
        if [[ ! -e $copy ]] && grep -qs '"state": "finished"' "$run/status.json"; then
            rm -rf "$copy.copying"
            cp -r "$run" "$copy.copying"
            sed -i 's/^name: c2d_r50/name: slow_r50/' "$copy.copying/config.yaml"
            mv "$copy.copying" "$copy"
        fi
    done
}

run nlvideo-train experiment=stills_r50 resume=auto
run nlvideo-train experiment=stills_r101 model.width=8 resume=auto
run train sweeps
run train longer_clips
share_rows
for folder in long_range end_disc short_range gcnet r101 long_clip long_clip_r101; do
    evaluate "$folder"
done
evaluate half_clip data.test.num_clips=3
evaluate one_frame data.test.num_clips=10
exit $failed
