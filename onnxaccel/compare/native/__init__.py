"""Candidates of a comparison, one file per framework: what runs in their processes.

Each has ``candidate(setup)``, see `onnxaccel.runtime.measure.worker`. Nothing but numpy is imported before it
is called, so that the framework's own import counts, and so that a framework's own Python can run the file.
All take arrays and give arrays: what a framework needs to get them in and out is part of its time.
"""
