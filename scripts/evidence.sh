#!/usr/bin/env bash
# The study of docs/results.md, on synthetic images, on the CPU:
#   1. the FPN at 32, 8, 4, 3, 2 and 1 bits,
#   2. the six orders of the modules at 8-2-8 bits (backbone, FPN, head),
#   3. MQAT's search against uniform LSQ and layer-wise bits (HAWQ-V3) at three compressions,
# three seeds each. `scripts/evidence.sh [DIR]` (default logs/evidence) runs what is missing and writes the reports into
# DIR/report. Stopped or killed, the same command goes on. Variables:
#   JOBS=N           one-thread processes at a time (default: the cores)
#   TOPOLOGY, DEVICE another network, and where it runs (default: WidedepthTiny, cpu)
#   START=FILE       its full-precision weights (default: the config's experiment.url)
#   IMAGES="..."     options of `mqat synth` for the images
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/common.sh"
self=$repo/scripts/evidence.sh
out=$(realpath -m -- "${1:-$repo/logs/evidence}")
jobs=${JOBS:-$(nproc)}
topology=${TOPOLOGY:-WidedepthTiny}
device=${DEVICE:-cpu}

seeds=(1 2 3)
epochs=4                        # of each module's stage: INQ freezes 50, 75, 90 and 100 %
total=$((3 * epochs))           # of every network of parts 2 and 3
fpn_bits=(8 4 3 2 1)
lsq_bits=(8 4 3)                # 4, 8 and 10.67 times smaller
targets=(4 8 10.66)             # MQAT and HAWQ-V3: at least as small
widths=2,3,4,6,8
read -ra images <<<"${IMAGES:---train 480 --val 200 --test 800 --size 128 --depth 1.2d:3d --attitude 45 --seed 5}"
data=$out/data

places=(--topology "$topology" --data "$data" --device "$device" --quiet)
settings=(--set training.full_precision=null --set "quantize.flow.0.epochs=$epochs" --set "training.valid_every=$epochs"
    --set RUNTIME.NUM_THREADS=1 --set RUNTIME.NUM_WORKERS=1)
if [[ -n ${START:-} ]]; then
    settings+=(--set experiment.pretrained=true --set "experiment.url=$(realpath -- "$START")")
fi

# timed COMMAND...: runs it and adds its processor time, in seconds, to DIR/cpu_seconds.txt.
timed() {
    local TIMEFORMAT='%U %S' said code=0
    said=$(mktemp)
    { time "$@" 2>&3; } 3>&2 2>"$said" || code=$?
    tail -n 1 "$said" >>"$out/cpu_seconds.txt"
    rm -f "$said"
    return "$code"
}

# evaluate LOGS: the end of the experiment LOGS/SwissCube/$topology/exp000 on the test split, once.
evaluate() {
    if [[ -f $1/SwissCube/$topology/exp000/eval/test/metrics.json ]]; then return; fi
    timed "$mqat" test "${places[@]}" --logs "$1" --exp-id 0 >/dev/null
}

# train NAME SEED ARGS...: one experiment, trained to its end and evaluated.
train() {
    local logs=$out/runs/$1-seed$2 seed=$2
    shift 2
    if [[ ! -f $logs/trained ]]; then
        local start=("${settings[@]}" --seed "$seed" "$@")
        if [[ -f $logs/SwissCube/$topology/exp000/config.json ]]; then start=(--resume); fi
        timed "$mqat" train "${places[@]}" --logs "$logs" --exp-id 0 "${start[@]}" >/dev/null
        touch "$logs/trained"
    fi
    evaluate "$logs"
    echo "evidence: ${logs##*/} is there" >&2
}

# orders SEED: all orders of the modules, each at its end evaluated.
orders() {
    local dir=$out/orders-seed$1 trial
    timed "$mqat" search "${places[@]}" "${settings[@]}" --seed "$1" --dir "$dir" --assign backbone:8,fpn:2,head:8 --orders all \
        --json >"$dir.json.part"
    mv "$dir.json.part" "$dir.json"
    for trial in "$dir"/trials/*bit.*bit.*bit-*; do evaluate "$trial"; done
    echo "evidence: the orders of seed $1 are there" >&2
}

# plan NAME ARGS...: a plan of `mqat search`.
plan() {
    local file=$out/plans/$1.json
    shift
    if [[ -f $file ]]; then return; fi
    timed "$mqat" search "${places[@]}" "${settings[@]}" --seed 1 --dir "$out/search" --bits "$widths" --out "$file" --json "$@" \
        >"${file%.json}.search.json"
}

# One task in a process of its own: evidence.sh DIR TASK ARGS...
if (($# > 1)); then
    shift
    "$@"
    exit
fi

"$repo/setup.sh"
mkdir -p "$out/runs" "$out/plans"
"$mqat" synth --out "$data" "${images[@]}" --keep
# The plans first: what the compressions mean depends on them.
for target in "${targets[@]}"; do
    plan "mqat-$target" --target-compression "$target" --jobs "$jobs"
    plan "hawq-$target" --target-compression "$target" --layerwise --method lsq
done

tasks() {
    local seed bits target
    for seed in "${seeds[@]}"; do
        echo "orders $seed"
        for target in "${targets[@]}"; do
            echo "train mqat-$target $seed --flow plans/mqat-$target.json"
            echo "train hawq-$target $seed --flow plans/hawq-$target.json"
        done
        for bits in "${lsq_bits[@]}"; do echo "train lsq-$bits $seed --method lsq --bits $bits --epochs $total"; done
        echo "train float-$total $seed --method full-precision --epochs $total"
        echo "train float-$epochs $seed --method full-precision --epochs $epochs"
        for bits in "${fpn_bits[@]}"; do echo "train fpn-$bits $seed --flow fpn:$bits"; done
    done
}
cd -- "$out" # tasks name their plans from here
tasks | xargs -P "$jobs" -L 1 "$self" "$out"

report() {
    local name=$1 title=$2
    shift 2
    "$mqat" report "${places[@]}" --out "$out/report/$name" --title "$title" "$@"
}
report fpn_bits "FPN bits" "$out"/runs/float-"$epochs"-seed* "$out"/runs/fpn-*
report orders "Orders of the modules at 8-2-8 bits" "$out"/orders-seed*/trials/*bit.*bit.*bit-*
report methods "MQAT, LSQ and HAWQ-V3" "$out"/runs/{float-"$total",mqat,lsq,hawq}-*
awk '{ s += $1 + $2 } END { printf "evidence: %.0f minutes of processor time\n", s / 60 }' "$out/cpu_seconds.txt"
