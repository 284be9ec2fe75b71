"""The version of onnxaccel."""

__version__ = "0.1.0"
