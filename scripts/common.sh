# Shared by train.sh and test.sh, which source it. Sets `repo`, `mqat` and `synthetic`.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that source this

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
mqat=$repo/target/release/mqat
synthetic=$repo/data/SwissCubeSynthetic
# Whoever calls a script of this repository means its problems, data and logs, wherever the call comes from.
export MQAT_HOME=${MQAT_HOME:-$repo}

# option NAME ARGS...: the value of `--NAME VALUE` or `--NAME=VALUE` among ARGS; fails if it is not there.
option() {
    local name=--$1 next=
    shift
    local arg
    for arg in "$@"; do
        if [[ -n $next ]]; then
            printf '%s\n' "$arg"
            return
        fi
        case $arg in
        "$name") next=1 ;;
        "$name="*)
            printf '%s\n' "${arg#*=}"
            return
            ;;
        esac
    done
    return 1
}

# wants_help ARGS...: whether they ask for help.
wants_help() {
    local arg
    for arg in "$@"; do
        if [[ $arg == -h || $arg == --help ]]; then return; fi
    done
    return 1
}

# The data root of cfg/hard_storage.json.
data_root() {
    local root=
    if [[ -r $MQAT_HOME/cfg/hard_storage.json ]]; then
        root=$(tr -d '\n' <"$MQAT_HOME/cfg/hard_storage.json" |
            sed -n 's/.*"data"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p')
    fi
    root=${root:-data}
    if [[ $root == /* ]]; then printf '%s\n' "$root"; else printf '%s\n' "$MQAT_HOME/$root"; fi
}

# Whether the data root has SwissCube.
has_swisscube() {
    local root
    root=$(data_root)
    [[ -f $root/SwissCube/training.txt || -f $root/training.txt ]]
}
