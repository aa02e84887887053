#!/usr/bin/env bash
# Measures mqat beside the Python programs that do the same, in one run and in turns, and prints ratios with quartiles.
#   scripts/peers.sh [--python FILE] [--size PX] [--batch N] [--rounds N] [--json FILE] [--rows forward,train,pnp,loader]
# It makes .venv-peers with what can be installed there: torch (3 GB where pip has no CPU build of it), ONNX Runtime, OpenVINO,
# OpenCV. What cannot be installed is left out, and said. Needed: target/release/mqat. --python FILE takes another Python.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
readonly venv=.venv-peers mqat=$PWD/target/release/mqat

[[ -x $mqat ]] || {
    echo "peers.sh: $mqat is missing: run ./setup.sh first" >&2
    exit 1
}
# Threads that spin while they wait cost CPU time and slow down what runs beside them: none of the programs does it here.
export OMP_WAIT_POLICY=PASSIVE

if [[ ${1:-} == --python ]]; then
    python=$2
    shift 2
else
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
    python=$PWD/$venv/bin/python
fi
install() { # MODULE PACKAGE...
    "$python" -c "import $1" 2>/dev/null && return
    [[ $python == "$PWD/$venv/bin/python" ]] || return 0 # somebody else's: nothing is installed there
    echo "peers.sh: installing ${*:2} into $venv" >&2
    "$python" -m pip install --disable-pip-version-check --no-input --quiet "${@:2}" >&2 ||
        echo "peers.sh: ${*:2} cannot be installed: its rows are left out" >&2
}
install numpy numpy
# The version that mqat is built with: the same kernels.
install torch torch==2.11.0
install onnxruntime onnxruntime
install openvino openvino
install cv2 opencv-python-headless
exec "$python" scripts/peers.py --mqat "$mqat" "$@"
