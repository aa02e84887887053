#!/usr/bin/env bash
# Runs examples/python and examples/cpp against what mqat itself computes, where their tools are; says what it leaves out.
#   python3 with numpy: read_packed.py; with onnxruntime and cv2 too: decode.py. A C++ compiler: check_pose; with the headers of
#   ONNX Runtime in $ORT/include (or /usr/include/onnxruntime): decode. MQAT_PYTHON names another python3.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
readonly repo=$PWD mqat=$PWD/target/release/mqat
python=${MQAT_PYTHON:-python3}
for own in .venv-onnx/bin/python .venv/bin/python; do
    if [[ -z ${MQAT_PYTHON:-} && -x $own ]] && "$own" -c 'import numpy' 2>/dev/null; then python=$PWD/$own && break; fi
done
has_cpp_decode=
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
skip() { printf 'check_examples: NOT RUN: %s\n' "$*" >&2; }
can_import() { "$python" -c "import $1" 2>/dev/null; }

# A network with 2-bit, 4-bit and float modules, its files, and its poses.
make_files() {
    local data=$folder/data options=(--problem SwissCube --topology WidedepthTiny --logs "$folder/logs")
    "$mqat" -q synth --out "$data" --train 32 --val 8 --test 12 --size 128 --depth 1.2d:3d --attitude 45 --seed 5
    "$mqat" -q train "${options[@]}" --data "$data" --flow fpn:2,head:4 --epochs 1 --set training.full_precision=null \
        --set quantize.flow.0.lr.base=1e-6
    checkpoint=$(ls "$folder"/logs/SwissCube/WidedepthTiny/exp000/checkpoints/stage_1_*.safetensors)
    "$mqat" -q export "$checkpoint" --format packed --out "$folder/net.mqat"
    "$mqat" -q export "$checkpoint" --format packed --ternary 2bit --fold-bn --out "$folder/folded.mqat"
    "$mqat" -q export "$checkpoint" --format safetensors --weights quantized --out "$folder/net.safetensors"
    "$mqat" -q export "$checkpoint" --format onnx --out "$folder/net.onnx"
    "$mqat" -q predict --checkpoint "$checkpoint" --data "$data" --out "$folder/poses" "$data/testing.txt"
    scene=$(dirname "$(dirname "$data/$(head -n 1 "$data/testing.txt")")")
}

check_python() {
    if ! can_import numpy; then
        skip "read_packed.py and decode.py: $python has no numpy"
        return
    fi
    local file
    for file in net folded; do
        "$python" examples/python/read_packed.py "$folder/$file.mqat" --compare "$folder/net.safetensors"
    done
    if ! can_import onnxruntime || ! can_import cv2; then
        skip "decode.py: $python lacks onnxruntime or cv2 (pip install onnxruntime opencv-python-headless)"
        return
    fi
    "$python" - "$scene/scene_camera.json" "$folder/camera.json" <<'PYTHON'
import json, sys
camera = next(iter(json.load(open(sys.argv[1])).values()))
json.dump({"cam_K": camera["cam_K"]}, open(sys.argv[2], "w"))
PYTHON
    local decode=$PWD/examples/python/decode.py
    (cd "$folder/data" && mapfile -t pictures <testing.txt &&
        "$python" "$decode" "$folder/net.onnx" "$folder/camera.json" "${pictures[@]}" --boxes swisscube_bbox.json \
            --compare "$folder/poses/predictions.jsonl" >"$folder/decoded.jsonl")
}

check_cpp() {
    local include=${ORT:-/usr}/include
    make -s -C examples/cpp check_pose CXX="${CXX:-c++}"
    (cd examples/cpp && ./check_pose)
    if [[ ! -e $include/onnxruntime_cxx_api.h && ! -e $include/onnxruntime/onnxruntime_cxx_api.h ]]; then
        skip "examples/cpp/main.cpp: no onnxruntime_cxx_api.h; set ORT to the folder of ONNX Runtime's C++ archive"
        return
    fi
    make -s -C examples/cpp decode CXX="${CXX:-c++}"
    has_cpp_decode=1
}

# The poses of examples/cpp/decode against those of mqat predict, on the pictures as PPM.
check_cpp_poses() {
    if [[ -z $has_cpp_decode ]] || ! can_import cv2; then
        skip "examples/cpp/decode on pictures: it or cv2 is missing"
        return
    fi
    (cd "$folder/data" && PYTHONPATH=$repo/examples/python "$python" - "$repo/examples/cpp/decode" "$folder" <<'PYTHON'
import json, subprocess, sys
import cv2
import decode
program, folder = sys.argv[1:]
names = open("testing.txt").read().split()
pictures = [f"{folder}/{i}.ppm" for i in range(len(names))]
for name, picture in zip(names, pictures):
    cv2.imwrite(picture, cv2.imread(name))
k = decode.read_camera(f"{folder}/camera.json")[0]
numbers = [repr(float(v)) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2])]
ran = subprocess.run([program, f"{folder}/net.onnx", *numbers, *pictures], stdout=subprocess.PIPE, check=True, text=True)
lines = [json.loads(line) for line in ran.stdout.splitlines()]
lines = [{**line, "image": names[pictures.index(line["image"])]} for line in lines]
sys.exit(0 if decode.is_near(lines, *decode.compare(lines, f"{folder}/poses/predictions.jsonl")) else 1)
PYTHON
    )
}

if command -v make >/dev/null && command -v "${CXX:-c++}" >/dev/null; then check_cpp; else skip "examples/cpp: no make or C++ compiler"; fi
if can_import numpy; then make_files; fi
check_python
check_cpp_poses
