#!/usr/bin/env bash
# The main job in one go: a reference model saved by its own framework is converted, trained on real data, evaluated.
# The data, the 1,797 handwritten digits (8x8) of scikit-learn, needs no download.
set -euo pipefail
bin=${1:-.venv/bin}
out=${2:-demo-out}

run() {
    echo "\$ onnxaccel $*"
    "$bin/onnxaccel" "$@"
}

run models export mlp --framework pytorch --input-shape 64 -o "$out"
run convert "$out/mlp.pt2" --trainable -o "$out/mlp.onnx"
run train "$out/mlp.onnx" --data 'sklearn:digits#0:1500' --val 'sklearn:digits#1500:' --lr 5e-3 --epochs 20 -o "$out/trained.onnx"
run evaluate "$out/trained.onnx" --data 'sklearn:digits#1500:'
