"""``python -m onnxaccel`` is the command line."""

from onnxaccel.cli import main

main()
