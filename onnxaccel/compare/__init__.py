"""The native frameworks beside ONNX Runtime, on the same machine, weights, data and threads."""
