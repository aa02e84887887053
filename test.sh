#!/usr/bin/env bash
# Evaluates: the latest experiment, or the checkpoint given first:
#   ./test.sh [CHECKPOINT.safetensors] [args of `mqat test`]
# On SwissCube if it is in the data root or named with --data, else on the synthetic images that train.sh made.
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/scripts/common.sh"
"$repo/setup.sh"
if wants_help "$@"; then exec "$mqat" test --help; fi

choice=()
if (($# > 0)) && [[ $1 != -* ]]; then
    choice+=(--checkpoint "$1")
    shift
fi
topology=Widedepth
if ! option data "$@" >/dev/null && ! option problem "$@" >/dev/null && ! has_swisscube; then
    if [[ ! -f $synthetic/testing.txt ]]; then
        echo "test.sh: no SwissCube in $(data_root), and no synthetic images either: run ./train.sh first" >&2
        exit 1
    fi
    choice+=(--data "$synthetic")
    topology=WidedepthTiny
fi
if ! option config "$@" >/dev/null; then
    if ! option problem "$@" >/dev/null; then choice+=(--problem SwissCube); fi
    if ! option topology "$@" >/dev/null; then choice+=(--topology "$topology"); fi
fi
exec "$mqat" test "${choice[@]}" "$@"
