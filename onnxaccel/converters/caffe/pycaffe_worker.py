"""Forward passes in a real Caffe, in Caffe's own Python; imports nothing of ours.

Argument: a JSON file with a list of jobs {"prototxt", "weights" (or null), "inputs" (.npz), "results" (.npz
to write), "blobs" (names)}. Caffe aborts the process on a network that it does not like: the results of the
jobs before it are there by then.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def forward(prototxt: str, weights: str | None, inputs: str, results: str, blobs: list[str]) -> None:
    """Feed the inputs, run, and save the named blobs."""
    import caffe

    net = caffe.Net(prototxt, weights, caffe.TEST) if weights else caffe.Net(prototxt, caffe.TEST)
    with np.load(inputs) as feed:
        for name in feed.files:
            net.blobs[name].reshape(*feed[name].shape)
        net.reshape()
        for name in feed.files:
            net.blobs[name].data[...] = feed[name]
    net.forward()
    np.savez(results, **{name: net.blobs[name].data for name in blobs})


def main(path: str) -> None:
    """Run all jobs in order."""
    import caffe

    caffe.set_mode_cpu()
    with open(path) as file:
        jobs = json.load(file)
    for job in jobs:
        forward(**job)


if __name__ == "__main__":
    main(sys.argv[1])
