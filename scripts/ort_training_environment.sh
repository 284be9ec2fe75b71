#!/usr/bin/env bash
# Make an environment with onnxruntime-training-cpu 1.19.2, the last one, in place of onnxruntime.
#
#   scripts/ort_training_environment.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: $0 FOLDER}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -v '^onnxruntime==' constraints.txt >"$constraints"
python3.11 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" \
    onnxruntime-training-cpu==1.19.2 torch onnx onnx-ir onnxscript numpy safetensors typer rich pillow cerberus
echo "export ONNXACCEL_ORT_TRAINING=$folder/bin/python"
