#!/usr/bin/env bash
# Trains. With SwissCube in the data root, or with --data, this is
#   mqat train --problem SwissCube --topology Widedepth [args]
# With no dataset it makes a small synthetic one and shows the whole method on a small network: full precision, then the
# FPN at 2 bits, then both evaluated side by side. All arguments go to `mqat train` (see ./train.sh --help), but for
#   --procs N    trains in N processes on this machine, one for each GPU (docs/distributed.md)
set -euo pipefail

# The synthetic dataset of the demonstration.
SYNTHETIC=(--train 3000 --val 100 --test 400 --size 128 --depth 1.2d:3d --attitude 45 --seed 1)
DEMONSTRATION=WidedepthTiny

# shellcheck source=scripts/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/scripts/common.sh"
"$repo/setup.sh"
if wants_help "$@"; then exec "$mqat" train --help; fi

# --procs is for the launcher; what is left goes on as it came.
launch=()
if procs=$(option procs "$@"); then
    launch=(launch --procs "$procs" --)
    left=()
    while (($# > 0)); do
        case $1 in
        --procs) shift ;;
        --procs=*) ;;
        *) left+=("$1") ;;
        esac
        shift
    done
    set -- "${left[@]}"
fi

# What the arguments do not choose.
choice=()
option config "$@" >/dev/null || choice=(--problem SwissCube)
if option problem "$@" >/dev/null; then choice=(); fi

if option data "$@" >/dev/null || option problem "$@" >/dev/null || has_swisscube; then
    if ! option topology "$@" >/dev/null && ! option config "$@" >/dev/null; then choice+=(--topology Widedepth); fi
    exec "$mqat" "${launch[@]}" train "${choice[@]}" "$@"
fi

echo "train.sh: no SwissCube in $(data_root): training the small network on synthetic images instead" >&2
"$mqat" synth --out "$synthetic" "${SYNTHETIC[@]}" --keep
if ! option topology "$@" >/dev/null && ! option config "$@" >/dev/null; then choice+=(--topology "$DEMONSTRATION"); fi
choice+=(--data "$synthetic")
"$mqat" "${launch[@]}" train "${choice[@]}" "$@"

# The experiment that was just trained: these options say which, the others are for training alone.
for name in problem topology config logs device exp-id; do
    if value=$(option "$name" "$@"); then choice+=("--$name" "$value"); fi
done
for flag in --json --skip-bad; do
    if [[ " $* " == *" $flag "* ]]; then choice+=("$flag"); fi
done
exec "$mqat" test "${choice[@]}" --all-stages
