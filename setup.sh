#!/usr/bin/env bash
# Makes target/release/mqat: finds libtorch 2.11, or installs it into .venv, and builds. Says nothing when there is
# nothing to do. libtorch is, in this order:
#   1. $LIBTORCH, if set (the folder that holds lib/ and include/)
#   2. the one that served the last build, as long as it is there
#   3. the torch package of the python3 on the PATH, if it is 2.11
#   4. the private .venv here; without an NVIDIA GPU only the wheels that CPUs need are installed
# With --with-ort it also fetches ONNX Runtime's shared library (35 MB, from its wheel) to lie beside the program, for
# `mqat test --engine ort`.
# With --bundle DIR it makes the folder DIR, which can be carried to another machine: the program, the libraries that it
# needs of libtorch (450 MB, CPU only), ONNX Runtime's where it is, the problems and a README.
# Afterwards plain `cargo build --release` and `cargo test --release` work too (.cargo/config.toml names the libtorch).
set -euo pipefail

readonly TORCH_SERIES=2.11
readonly TORCH_WHEEL=torch==2.11.0
# What libtorch_cpu.so itself loads from the CUDA packages, whether there is a GPU or not.
readonly CPU_WHEELS=("$TORCH_WHEEL" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# Room for wheels, their download and the build, GB.
readonly ORT_WHEEL=onnxruntime==1.32.0
readonly INSTALL_CPU_GB=6 INSTALL_GPU_GB=12 BUILD_GB=3

readonly called_from=$PWD
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
here=$PWD
readonly here
readonly binary=target/release/mqat           # what users call; everything that needs libtorch is in:
readonly core=target/release/mqat-core
readonly ort_library=target/release/libonnxruntime.so
readonly stamp=target/setup.stamp            # line 1: the libtorch of the build; its time: when the build began
readonly cargo_config=.cargo/config.toml
readonly written_by_us='# Written by setup.sh; remove this line to keep changes.'
readonly venv_mark=.venv/mqat-setup          # line 1: installing, cpu or gpu

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

has_gpu() {
    compgen -G '/dev/nvidia[0-9]*' >/dev/null || { has nvidia-smi && nvidia-smi -L >/dev/null 2>&1; }
}

# The version of the libtorch in a folder, as it says itself; empty if it does not.
torch_version() {
    if [[ -r $1/version.py ]]; then # of the Python package
        sed -n "s/^__version__ *= *['\"]\([^'\"]*\)['\"].*/\1/p" "$1/version.py" | head -n 1
    elif [[ -r $1/build-version ]]; then # of the C++ archive
        head -n 1 "$1/build-version"
    fi
}

is_series() { [[ $1 == "$TORCH_SERIES" || $1 == "$TORCH_SERIES".* || $1 == "$TORCH_SERIES"+* ]]; }
is_complete() {
    [[ -e $1/lib/libtorch_cpu.so && -d $1/include/torch/csrc/api/include && -e $1/include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp ]]
}
is_usable() { [[ -n $1 ]] && is_complete "$1" && is_series "$(torch_version "$1")"; }

need_space() {
    local needed_gb=$1 what=$2 free_kb
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    ((free_kb >= needed_gb * 1024 * 1024)) ||
        fail "$what needs $needed_gb GB of disk space, $((free_kb / 1024 / 1024)) GB are free in $here"
}

# The torch of .venv, wherever its Python version puts it; empty if there is none.
torch_of_venv() {
    local found
    for found in .venv/lib/python3*/site-packages/torch; do
        [[ -d $found ]] && printf '%s\n' "$here/$found" && return
    done
    return 0
}

is_ours() { [[ -e $venv_mark ]]; }
venv_state() { if is_ours; then head -n 1 "$venv_mark"; fi; }

# Whether a torch is the one in .venv and lacks what this machine now needs.
venv_lags() {
    [[ $1 == "$here"/.venv/* ]] && is_ours || return 1
    case $(venv_state) in
    gpu) return 1 ;;
    cpu) has_gpu ;;
    *) return 0 ;;
    esac
}

# --- nothing to do? -------------------------------------------------------------------------------------------------

is_up_to_date() {
    [[ -x $binary && -x $core && -r $stamp && -r $cargo_config ]] || return 1
    local torch changed
    torch=$(head -n 1 "$stamp")
    [[ -z ${LIBTORCH:-} || $(cd -- "$LIBTORCH" 2>/dev/null && pwd) == "$torch" ]] || return 1
    is_usable "$torch" && ! venv_lags "$torch" || return 1
    changed=$(find src problems build.rs Cargo.toml Cargo.lock rust-toolchain.toml setup.sh "$cargo_config" \
        "$torch/lib/libtorch_cpu.so" -newer "$stamp" -print -quit 2>/dev/null || true)
    [[ -z $changed ]]
}

# --- finding libtorch -----------------------------------------------------------------------------------------------

torch_of_env() {
    local version
    [[ -d $LIBTORCH ]] || fail "LIBTORCH is $LIBTORCH, which is not a directory"
    LIBTORCH=$(cd -- "$LIBTORCH" && pwd)
    is_complete "$LIBTORCH" ||
        fail "LIBTORCH is $LIBTORCH, which lacks lib/libtorch_cpu.so, include/torch, or c10d with gloo in there: name the folder above lib and include"
    version=$(torch_version "$LIBTORCH")
    [[ -n $version ]] || fail "LIBTORCH is $LIBTORCH, which has neither version.py nor build-version to tell its version"
    is_series "$version" ||
        fail "LIBTORCH is $LIBTORCH, which is version $version, expected $TORCH_SERIES; unset it to have that installed here"
    torch=$LIBTORCH
}

# Sets `torch` from the python3 on the PATH. Looks without importing, which would take seconds.
torch_of_python() {
    local found version
    has python3 || return 1
    found=$(python3 -c '
import importlib.util, os
spec = importlib.util.find_spec("torch")
print(os.path.dirname(spec.origin) if spec and spec.origin else "")' 2>/dev/null) || return 1
    [[ -n $found && $found != "$here"/.venv/* ]] || return 1
    version=$(torch_version "$found")
    if is_usable "$found"; then
        torch=$found
        say "using the torch $version of python3: $torch"
        if has_gpu && [[ ! -e $torch/lib/libtorch_cuda.so ]]; then
            say "this torch has no CUDA: the GPU here will not be used; set LIBTORCH to one that has"
        fi
        return 0
    fi
    if is_series "$version"; then
        say "the torch $version of python3 has no libtorch to build with: $found; using a private one in .venv"
    else
        say "the torch of python3 is version ${version:-unknown}, expected $TORCH_SERIES: using a private one in .venv"
    fi
    return 1
}

# Sets `torch` to that of .venv, installed or completed if need be.
torch_of_own_venv() {
    torch=$(torch_of_venv)
    if [[ -e .venv ]] && ! is_ours; then
        is_usable "$torch" && return
        fail "$here/.venv was not made by setup.sh and has no torch $TORCH_SERIES: remove it, or set LIBTORCH"
    fi
    mkdir -p target
    if has flock; then
        exec 9>target/setup.lock
        flock -n 9 || { say "waiting for another setup.sh" && flock 9; }
        torch=$(torch_of_venv)
    fi
    if ! is_usable "$torch" || venv_lags "$torch"; then
        install_torch
        torch=$(torch_of_venv)
        is_usable "$torch" || fail "pip ended well, but $here/.venv has no torch $TORCH_SERIES: remove .venv and try again"
    fi
    if has flock; then exec 9>&-; fi
}

install_torch() {
    local kind=cpu gigabytes=$INSTALL_CPU_GB
    if has_gpu; then kind=gpu gigabytes=$INSTALL_GPU_GB; fi
    check_python
    need_space "$gigabytes" "installing $TORCH_WHEEL and building"
    if [[ $(venv_state) != cpu ]]; then # none, or an installation that was cut off; one for CPUs is completed in place
        if [[ -e .venv ]]; then say "removing .venv: its installation was cut off"; fi
        rm -rf .venv
        hash -r # python3 may have been its
        mkdir .venv
        echo installing >"$venv_mark"
        python3 -m venv .venv || fail "python3 -m venv failed: see its message above"
    fi
    mkdir -p .venv/tmp # /tmp may be too small for the wheels
    local pip=(env "TMPDIR=$here/.venv/tmp" .venv/bin/python -m pip install --disable-pip-version-check --no-input)
    if [[ $kind == gpu ]]; then
        say "installing $TORCH_WHEEL with its CUDA packages into .venv (a download of about 2.5 GB)"
        "${pip[@]}" "$TORCH_WHEEL" >&2 || pip_failed
    else
        say "no NVIDIA GPU here: installing $TORCH_WHEEL for CPUs into .venv (a download of about 550 MB)"
        "${pip[@]}" --no-deps "${CPU_WHEELS[@]}" >&2 || pip_failed
    fi
    rm -rf .venv/tmp
    echo "$kind" >"$venv_mark"
}

pip_failed() {
    fail "pip could not install $TORCH_WHEEL, see its message above; run setup.sh again to go on, or set LIBTORCH to a libtorch $TORCH_SERIES"
}

check_python() {
    local or_set="or set LIBTORCH to a libtorch $TORCH_SERIES"
    [[ $(uname -s) == Linux ]] || fail "wheels are installed on Linux only: set LIBTORCH to a libtorch $TORCH_SERIES"
    has python3 || fail "python3 is missing: install it with pip and venv (Debian, Ubuntu: apt install python3-venv), $or_set"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$(python3 --version) is too old for $TORCH_WHEEL: install 3.10 or later, $or_set"
    python3 -c 'import venv, ensurepip' 2>/dev/null ||
        fail "python3 has no venv or pip: install them (Debian, Ubuntu: apt install python3-venv), $or_set"
}

# --- building -------------------------------------------------------------------------------------------------------

check_tools() {
    if ! has cargo && [[ -x $HOME/.cargo/bin/cargo ]]; then PATH=$HOME/.cargo/bin:$PATH; fi
    has cargo || fail "cargo is missing: install Rust 1.95 or later (https://rustup.rs)"
    local cxx=${CXX:-c++}
    has "${cxx%% *}" || fail "the C++ compiler $cxx is missing: install one (Debian, Ubuntu: apt install g++), or set CXX"
    has cc || fail "the linker cc is missing: install a C compiler (Debian, Ubuntu: apt install gcc)"
    if ! compgen -G 'target/release/build/torch-sys-*' >/dev/null; then need_space "$BUILD_GB" building; fi
}

# Lets plain cargo find the libtorch; an environment variable LIBTORCH still wins over it.
write_cargo_config() {
    local escaped=${torch//\\/\\\\} text
    escaped=${escaped//\"/\\\"}
    text=$written_by_us$'\n[env]\nLIBTORCH = "'$escaped$'"\n'
    if [[ -e $cargo_config ]] && ! grep -qxF "$written_by_us" "$cargo_config"; then
        say "$cargo_config is yours and stays; for plain cargo it should say [env] LIBTORCH = \"$escaped\""
        return
    fi
    mkdir -p .cargo
    if [[ ! -e $cargo_config || $(<"$cargo_config")$'\n' != "$text" ]]; then
        printf '%s' "$text" >"$cargo_config.new"
        mv "$cargo_config.new" "$cargo_config"
    fi
}

build() {
    if compgen -G 'target/release/deps/libtorch_sys-*.rlib' >/dev/null; then
        say "building $binary"
    else
        say "building $binary; the first time this takes 5 to 15 minutes"
    fi
    mkdir -p target
    rm -f "$stamp" # until this build has ended well, nothing is up to date
    printf '%s\n' "$torch" >"$stamp.new" # its time is before that of anything changed during the build
    # These would choose another libtorch than the one found here.
    env -u LIBTORCH_USE_PYTORCH -u LIBTORCH_INCLUDE -u LIBTORCH_LIB -u LIBTORCH_STATIC LIBTORCH="$torch" \
        cargo build --release --locked --target-dir target >&2 || fail "the build failed: see cargo's message above"
    env -u LD_LIBRARY_PATH "$core" --help >/dev/null ||
        fail "$core was built and does not start: see its message above; is $torch complete?"
    mv "$stamp.new" "$stamp"
    say "$binary is ready"
}

# --- ONNX Runtime ---------------------------------------------------------------------------------------------------

# Puts the library of the wheel beside the program.
install_ort() {
    if [[ -r $ort_library.version && $(<"$ort_library.version") == "$ORT_WHEEL" && -r $ort_library ]]; then return; fi
    local python=
    for python in .venv/bin/python python3 ''; do # a python3 of the system may have no pip
        if [[ -n $python ]] && "$python" -m pip --version >/dev/null 2>&1; then break; fi
    done
    [[ -n $python ]] ||
        fail "no python3 with pip, which fetches $ORT_WHEEL (Debian, Ubuntu: apt install python3-pip); or set ORT_DYLIB_PATH to a libonnxruntime.so"
    say "fetching $ORT_WHEEL"
    mkdir -p target/release
    local folder
    folder=$(mktemp -d target/ort.XXXXXX)
    "$python" -m pip download --disable-pip-version-check --no-input --quiet --no-deps --only-binary=:all: \
        --dest "$folder" "$ORT_WHEEL" >&2 ||
        fail "pip could not fetch $ORT_WHEEL, see its message above; or set ORT_DYLIB_PATH to a libonnxruntime.so"
    "$python" - "$folder" "$ort_library" <<'PYTHON' || fail "$ORT_WHEEL has no libonnxruntime.so for this machine"
import glob, os, re, sys, zipfile
folder, library = sys.argv[1:]
wheel, = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as file:
    name, = [n for n in file.namelist() if re.search(r"/libonnxruntime\.so[.0-9]*$", n)]
    with open(library + ".new", "wb") as out:
        out.write(file.read(name))
os.replace(library + ".new", library)
PYTHON
    rm -rf "$folder"
    printf '%s\n' "$ORT_WHEEL" >"$ort_library.version"
    say "$ort_library is ready"
}

# --- a folder to carry ----------------------------------------------------------------------------------------------

# The libraries that a program loads, a path a line; one that is missing as "NAME not found".
libraries_of() {
    env -u LD_LIBRARY_PATH LD_TRACE_LOADED_OBJECTS=1 "$1" |
        sed -n -e 's/.* => \(\/.*\) (0x.*/\1/p' -e 's/^[[:space:]]*\(.*\) => not found$/\1 not found/p'
}

# Those of a bundle's program that are neither in it nor the system's.
libraries_outside() {
    local bundle=$1 library
    while IFS= read -r library; do
        if [[ $library == /* && $(realpath -m -- "$library") == "$bundle"/* ]]; then continue; fi
        if [[ ($library == /lib* || $library == /usr/lib*) && ! -e $bundle/lib/$(basename "$library") ]]; then continue; fi
        printf '%s\n' "$library"
    done < <(libraries_of "$bundle/mqat-core")
}

# The libraries that the program loads, but for those of the system, a path a line.
own_libraries() {
    libraries_of "$core" | grep '^/' | grep -v -e '^/lib' -e '^/usr/lib' || true
    # A libtorch of the system's folders is no less needed.
    find "$(head -n 1 "$stamp")/lib" -maxdepth 1 \( -name 'libtorch_cpu.so' -o -name 'libc10.so' -o -name 'libgomp*.so*' \)
}

make_bundle() {
    local bundle=$1 library outside
    [[ ! -e $bundle || (-d $bundle && -z $(ls -A "$bundle")) ]] || fail "$bundle already exists: name a new folder"
    mkdir -p "$bundle/lib" || fail "$bundle cannot be made"
    cp "$binary" "$core" "$bundle/"
    while IFS= read -r library; do
        cp -L "$library" "$bundle/lib/$(basename "$library")"
    done < <(own_libraries | sort -u)
    [[ -e $bundle/lib/libtorch_cpu.so ]] || fail "$core was built without a libtorch_cpu.so that can be copied"
    if [[ -r $ort_library ]]; then cp "$ort_library" "$bundle/"; fi
    cp -R problems LICENSE-MIT LICENSE-APACHE "$bundle/"
    bundle_readme >"$bundle/README.md"
    env -u LD_LIBRARY_PATH "$bundle/mqat-core" --help >/dev/null || fail "$bundle/mqat-core does not start: see above"
    outside=$(libraries_outside "$(realpath -- "$bundle")")
    [[ -z $outside ]] || fail "$bundle would not run elsewhere, it loads what is not in it: ${outside//$'\n'/, }"
    say "$bundle is ready: $(du -sm "$bundle" | cut -f 1) MB"
}

bundle_readme() {
    cat <<README
# mqat, to be carried

$("$binary" --version), made on $(uname -m) with glibc $(ldd --version | sed -n '1s/.* //p').

\`mqat\` here runs on any machine of that architecture with this glibc or a later one and libstdc++ (Debian, Ubuntu: libstdc++6), on
the CPU. Nothing is installed: copy the folder, run \`./mqat --help\`, delete the folder to be rid of it.
\`lib/\` holds libtorch and what it needs, \`problems/\` the configs, which \`mqat\` finds from any working folder. Logs and data are
looked for here too, unless --logs and --data name others. \`mqat predict\`, \`test\` and \`export\` of a checkpoint need nothing else.
For GPUs run setup.sh of the sources on the machine itself. The parts of PyTorch in lib/ are under PyTorch's BSD-style licence, CUDA's
runtime under NVIDIA's.
README
}

main() {
    local with_ort='' bundle=''
    while (($# > 0)); do
        case $1 in
        --with-ort) with_ort=1 ;;
        --bundle)
            [[ -n ${2:-} ]] || fail "--bundle needs the folder to make: ./setup.sh --bundle DIR"
            bundle=$(cd -- "$called_from" && realpath -m -- "$2")
            shift
            ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' setup.sh
            return
            ;;
        *) fail "$1 is not an option: there are --with-ort, --bundle DIR and --help" ;;
        esac
        shift
    done
    if ! is_up_to_date; then set_up; fi
    if [[ -n $with_ort ]]; then install_ort; fi
    if [[ -n $bundle ]]; then make_bundle "$bundle"; fi
}

set_up() {
    torch=
    if [[ -n ${LIBTORCH:-} ]]; then
        torch_of_env
    else
        if [[ -r $stamp ]]; then torch=$(head -n 1 "$stamp"); fi
        if ! is_usable "$torch" || venv_lags "$torch"; then
            torch_of_python || torch_of_own_venv
        fi
    fi
    check_tools
    write_cargo_config
    build
}

main "$@"
