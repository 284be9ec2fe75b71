"""Train a network in a real Caffe, in Caffe's own Python; tests and benchmarks compare with what it writes.

    python caffe_train.py SOLVER.prototxt WEIGHTS.caffemodel|- ITERATIONS TEST_BATCHES RESULTS.npz

The results are ``losses`` and ``first`` (after each iteration: its loss, and the first weight of the first
layer), ``seconds`` (of the iterations), the blobs after the last one as ``<layer>/<index>``, and with test
batches ``accuracy`` and ``test_loss``: the means of the test network's ``accuracy`` and ``loss``. The
training network has a blob ``loss``. One network a process: Caffe's data readers do not always end.
"""

import sys
import time

import numpy as np


def main(solver_file: str, weights: str, iterations: str, test_batches: str, results: str) -> None:
    """Train, test, and save what came out."""
    import caffe

    caffe.set_mode_cpu()
    solver = caffe.get_solver(solver_file)
    if weights != "-":
        solver.net.copy_from(weights)
    np.savez(results, **trained(solver, int(iterations)), **tested(solver, int(test_batches)))


def trained(solver, iterations: int) -> dict:
    """What so many iterations give."""
    losses, first, seconds = [], [], 0.0
    params = solver.net.params
    blobs = {f"{name}/{i}": blob for name, held in params.items() for i, blob in enumerate(held)}
    for _ in range(iterations):
        start = time.perf_counter()
        solver.step(1)
        seconds += time.perf_counter() - start
        losses.append(float(solver.net.blobs["loss"].data.sum()))
        first.append(float(next(iter(blobs.values())).data.flat[0]))
    found = {name: blob.data.copy() for name, blob in blobs.items()}
    return found | {"losses": np.array(losses), "first": np.array(first), "seconds": np.array(seconds)}


def tested(solver, batches: int) -> dict:
    """The test network's means over so many batches."""
    if not batches:
        return {}
    net = solver.test_nets[0]
    net.share_with(solver.net)
    sums = {"accuracy": 0.0, "loss": 0.0}
    for _ in range(batches):
        net.forward()
        for name in sums:
            sums[name] += float(net.blobs[name].data)
    return {"accuracy": np.array(sums["accuracy"] / batches), "test_loss": np.array(sums["loss"] / batches)}


if __name__ == "__main__":
    main(*sys.argv[1:])
