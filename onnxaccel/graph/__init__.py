"""ONNX graphs as onnx_ir values: the model, its derivative, and one training step as a graph."""
