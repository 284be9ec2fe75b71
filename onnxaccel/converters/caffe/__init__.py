"""Caffe networks: a prototxt and its caffemodel, layer by layer.

Parameters are named ``<layer>.weight`` and ``<layer>.bias``, running statistics ``<layer>.running_mean`` and
``<layer>.running_var``; outputs carry the names of Caffe's blobs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxaccel.converters.caffe import deploy
from onnxaccel.converters.caffe.assemble import DATA, Assembly, build, heads
from onnxaccel.converters.caffe.fillers import filled
from onnxaccel.converters.caffe.layers.detection import DETECTIONS
from onnxaccel.converters.caffe.net import Layer, read_net
from onnxaccel.converters.caffe.reference import find_reference
from onnxaccel.converters.caffe.solver import read_solver
from onnxaccel.converters.caffe.training import record, sizes_of_data
from onnxaccel.converters.caffe.weights import load_weights
from onnxaccel.converters.caffe.writing import caffemodel_of
from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected
from onnxaccel.errors import ConversionError
from onnxaccel.files import scratch_folder

__all__ = ["Assembly", "build", "convert_files", "convert_live", "load_weights", "read_net"]


def convert_live(model: Any, example: tuple[Any, ...], options: Options) -> Conversion:
    """Caffe's nets live in its own process; only files convert."""
    raise ConversionError("give the net's prototxt and caffemodel instead of a live Caffe net")


def convert_files(detected: Detected, options: Options) -> Conversion:
    """Convert a prototxt and its weights.

    Raises:
        ConversionError: The network cannot be read, or has a layer that is not known.
        MissingWeights: The caffemodel lacks weights of a layer, or has them in another shape.
    """
    prototxt, *weights = detected.paths
    net, trained = read_net(prototxt), _training_layers(prototxt)
    if weights:
        load_weights(net, weights[0])
    solver = read_solver(options.solver) if options.solver is not None else None
    if solver is not None:
        options = replace(options, trainable=True)
        for layer in net:
            layer.fill = filled(solver.random_seed or 0)
    options = replace(options, shapes=sizes_of_data(net, prototxt, options.shapes) | dict(options.shapes))
    options.progress(f"mapping {len(net)} layers")
    made = build(net, options)
    made.model.metadata.heads = heads(trained)
    record(made, net, trained, prototxt, solver)
    kinds = {layer.name: layer.type for layer in net}
    files, scratch = (prototxt, weights[0] if weights else None), ExitStack()
    unfit = (DATA | deploy.ACTING) & set(kinds.values())
    if solver is not None or unfit:  # weights that were only just drawn, no data, or code
        folder = scratch.enter_context(scratch_folder())
        files = deploy.write(net, made.model, caffemodel_of(made.model, prototxt), folder)
    reference = find_reference(*files, made.writers)
    return Conversion(
        made.model,
        reference.run if reference else None,
        _name_of(reference),
        rows=frozenset(blob for blob, layer in made.writers.items() if kinds[layer] in DETECTIONS),
        close=scratch.close,
    )


def _training_layers(prototxt: Path) -> list[Layer]:
    """The layers of the TRAIN phase; a deploy prototxt has the same ones, or none."""
    try:
        return read_net(prototxt, "TRAIN")
    except ConversionError:
        return []


def _name_of(reference: Any) -> str:
    missing = (
        "pip install 'onnxaccel[caffe]' brings OpenCV's reader of Caffe nets (make caffe builds a real one)"
    )
    return reference.name if reference else missing
