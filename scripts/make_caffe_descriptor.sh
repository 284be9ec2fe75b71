#!/usr/bin/env bash
# Compile caffe.proto into the descriptor set that onnxaccel loads with whatever protobuf is installed.
set -euo pipefail
folder=$(dirname "$0")/../onnxaccel/converters/caffe
"${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc --proto_path="$folder" \
    --descriptor_set_out="${1:-$folder/caffe.desc}" caffe.proto
