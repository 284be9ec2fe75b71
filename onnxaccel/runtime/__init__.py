"""Running graphs on onnxruntime: providers, sessions, the trainer, the evaluator."""
