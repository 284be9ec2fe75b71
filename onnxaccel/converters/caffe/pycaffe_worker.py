"""One forward pass in a real Caffe, in Caffe's own Python; imports nothing of ours.

Arguments: prototxt, caffemodel, inputs.npz, results.npz, names of blobs.
"""

import sys

import numpy as np


def main(prototxt: str, weights: str, inputs: str, results: str, *blobs: str) -> None:
    """Feed the inputs, run, and save the named blobs."""
    import caffe

    caffe.set_mode_cpu()
    net = caffe.Net(prototxt, weights, caffe.TEST)
    with np.load(inputs) as feed:
        for name in feed.files:
            net.blobs[name].reshape(*feed[name].shape)
        net.reshape()
        for name in feed.files:
            net.blobs[name].data[...] = feed[name]
    net.forward()
    np.savez(results, **{name: net.blobs[name].data for name in blobs})


if __name__ == "__main__":
    main(*sys.argv[1:])
