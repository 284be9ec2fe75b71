"""Keys, the encrypted container, signatures, and folders in memory; see docs/protection.md.

This floor knows nothing of models: it seals, opens and signs files. `onnxaccel.graph.files` knows which files
a model is made of, and `onnxaccel.protection` is what users import.
"""
