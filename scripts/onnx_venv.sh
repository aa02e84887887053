#!/usr/bin/env bash
# Makes .venv-onnx with the `onnx` checker and `onnxruntime`, which tests/cli/onnx.rs compares with; says nothing when it
# is there. Tests take another Python from MQAT_PYTHON_ONNX.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly venv=.venv-onnx

if ! "$venv/bin/python" -c 'import onnx, onnxruntime' 2>/dev/null; then
    echo "onnx_venv: installing onnx and onnxruntime into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet onnx==1.23.2 onnxruntime==1.32.0 >&2
fi
