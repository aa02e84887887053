#!/usr/bin/env bash
# The one check command: set-up, format, lints, documentation, all tests, the examples. Stops at the first that fails.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

# Threads of libtorch that spin while they wait slow down everything that runs beside them.
export OMP_WAIT_POLICY=PASSIVE

step() {
    local name=$1 began=$SECONDS
    shift
    printf '== %s\n' "$name"
    if ! "$@"; then
        printf '== %s: failed after %d s\n' "$name" $((SECONDS - began))
        exit 1
    fi
    printf '== %s: %d s\n' "$name" $((SECONDS - began))
}

step 'setup' ./setup.sh
if [[ -x $HOME/.cargo/bin/cargo ]] && ! command -v cargo >/dev/null; then PATH=$HOME/.cargo/bin:$PATH; fi
# The spelling that was built with: another one of the same folder would have torch-sys compiled again.
LIBTORCH=$(head -n 1 target/setup.stamp)
export LIBTORCH
unset LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB LIBTORCH_STATIC
for tool in fmt clippy; do
    cargo "$tool" --version >/dev/null 2>&1 || {
        echo "check.sh: cargo $tool is missing: rustup component add rustfmt clippy" >&2
        exit 1
    }
done
if command -v shellcheck >/dev/null; then
    step 'shellcheck' shellcheck -x setup.sh train.sh test.sh check.sh scripts/common.sh scripts/onnx_venv.sh scripts/check_examples.sh scripts/peers.sh .ci/run
fi
step 'format' cargo fmt --check
step 'lints' cargo clippy --release --locked --all-targets -- -D warnings
step 'documentation' env RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps --locked
step 'tests' cargo test --release --locked
for example in examples/*.rs; do
    name=$(basename "$example" .rs)
    step "example $name" cargo run --quiet --release --locked --example "$name"
done
step 'examples in Python and C++' scripts/check_examples.sh
printf '== all passed: %d s\n' "$SECONDS"
