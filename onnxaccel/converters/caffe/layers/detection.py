"""The heads of SSD detectors: prior boxes as constants, and boxes out of them by standard operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, count, dims, enum_name, layer_type, need
from onnxaccel.converters.caffe.net import Layer, bounded
from onnxaccel.errors import ConversionError

DETECTIONS = frozenset({"DetectionOutput"})
"""Layers whose rows are a set: their order and number hinge on comparisons of nearly equal numbers."""

_LOWEST = float(np.finfo(np.float32).min)
_FLOAT, _INT64 = ir.DataType.FLOAT.value, ir.DataType.INT64.value


@layer_type("PriorBox")
def prior_box(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """[1, 2, H W P 4]: row 0 the boxes of each cell, row 1 their variances; a constant.

    Per cell and min_size m: a square m; with max_size M a square sqrt(m M); for each aspect ratio but 1
    m sqrt(a) x m / sqrt(a). Sizes are cut to whole numbers. Centres are (i + offset) step, step = image /
    layer unless given; coordinates are divided by the image's size.
    """
    need(layer, bottoms, 2)
    p = layer.proto.prior_box_param
    rows, columns = (count(layer, [n]) for n in dims(bottoms[0])[2:])
    image_h, image_w = (
        given or p.img_size or count(layer, [n])
        for given, n in zip((p.img_h, p.img_w), dims(bottoms[1])[2:], strict=True)
    )
    step_h = p.step_h or p.step or image_h / rows
    step_w = p.step_w or p.step or image_w / columns
    sizes = _sizes(layer)
    bounded(layer, "its top", [1, 2, rows * columns * len(sizes) * 4])
    y, x = np.meshgrid(
        (np.arange(rows) + p.offset) * step_h, (np.arange(columns) + p.offset) * step_w, indexing="ij"
    )
    centre = np.stack([x, y], -1)[:, :, None]  # [rows, columns, 1, (x, y)]
    half = np.array(sizes) / 2
    corners = np.concatenate([centre - half, centre + half], -1) / np.array([image_w, image_h] * 2)
    if p.clip:
        corners = corners.clip(0, 1)
    variance = list(p.variance) or [0.1]
    if len(variance) not in (1, 4):
        raise ConversionError(f"{layer}: has {len(variance)} variances, needs 1 or 4")
    variances = np.broadcast_to(variance, corners.shape)
    return net.constant(layer, np.stack([corners.ravel(), variances.ravel()]).astype(np.float32)[None])


def _sizes(layer: Layer) -> list[tuple[float, float]]:
    """Width and height of the priors of one cell."""
    p = layer.proto.prior_box_param
    ratios = [1.0]
    for ratio in p.aspect_ratio:
        if any(abs(ratio - known) < 1e-6 for known in ratios):
            continue
        ratios += [ratio, 1 / ratio] if p.flip else [ratio]
    if not p.min_size or (p.max_size and len(p.max_size) != len(p.min_size)):
        raise ConversionError(
            f"{layer}: {len(p.min_size)} min_size and {len(p.max_size)} max_size do not fit together"
        )
    sizes = []
    for index, small in enumerate(int(size) for size in p.min_size):
        sizes.append((float(small), float(small)))
        if p.max_size:
            side = math.sqrt(small * int(p.max_size[index]))
            sizes.append((side, side))
        sizes += [(small * math.sqrt(r), small / math.sqrt(r)) for r in ratios if abs(r - 1) >= 1e-6]
    return sizes


@layer_type("DetectionOutput")
def detection_output(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """[1, 1, M, 7]: rows (image, label, score, x1, y1, x2, y2), ordered by image, label and falling score.

    Per class but the background: boxes with score > confidence_threshold, of these the top_k best, of these
    greedily those with an overlap of at most nms_threshold with any better one; then the keep_top_k best of
    an image. An empty result is a row (image, -1, ...) per image.
    """
    need(layer, bottoms, 3)
    p, op = layer.proto.detection_output_param, net.op
    if p.nms_param.eta < 1:
        raise ConversionError(
            f"{layer}: nms_param eta {p.nms_param.eta} has no standard operator; only 1 has"
        )
    location, confidence, prior = bottoms
    classes = p.num_classes
    priors = count(layer, dims(prior)[2:3]) // 4
    kinds = 1 if p.share_location else classes
    for value, width in ((location, priors * kinds * 4), (confidence, priors * classes)):
        if math.prod(count(layer, [n]) for n in dims(value)[1:]) != width:
            raise ConversionError(
                f"{layer}: a bottom has shape {dims(value)}, {width} values each are needed"
            )
    boxes = _decoded(net, layer, location, prior, priors, kinds)  # [N, kinds, P, 4]
    scores = op.Transpose(op.Reshape(confidence, [-1, priors, classes]), perm=[0, 2, 1])  # [N, C, P]
    candidates = _candidates(net, layer, scores, priors)
    threshold = float(p.confidence_threshold) if p.HasField("confidence_threshold") else _LOWEST
    nms = op.NonMaxSuppression(
        op.Reshape(_upright(net, layer, boxes), [-1, priors, 4]),
        op.Reshape(candidates, [-1, classes // kinds, priors]),
        op.constant([priors]),
        op.constant(np.array([p.nms_param.nms_threshold], np.float32)),
        op.constant(np.array([max(threshold, _LOWEST)], np.float32)),
    )
    nms.type = ir.TensorType(ir.DataType.INT64)  # [M, 3]: batch, class, box
    batch, kind, box = op.node("Split", [nms, [1, 1, 1]], outputs=3, axis=1)
    if kinds > 1:  # each class had boxes of its own, as a batch
        batch, kind = op.Div(batch, op.constant(kinds)), op.Mod(batch, op.constant(kinds))
    where = op.Concat(batch, kind, box, axis=1)
    where = _best(net, layer, scores, where, priors)
    image, label, box = op.node("Split", [where, [1, 1, 1]], outputs=3, axis=1)
    shared = op.Mul(label, op.constant(0)) if kinds == 1 else label
    rows = op.Concat(
        op.Cast(image, to=_FLOAT),
        op.Cast(label, to=_FLOAT),
        op.Unsqueeze(op.GatherND(scores, where), [1]),
        op.GatherND(boxes, op.Concat(image, shared, box, axis=1)),
        axis=1,
    )
    rows = op.Concat(rows, _nothing_found(net, rows, location), axis=0)
    return net.shaped(op.Unsqueeze(rows, [0, 1]), [1, 1, f"{layer.name}_rows", 7], layer)


def _decoded(
    net: NetBuilder, layer: Layer, location: ir.Value, prior: ir.Value, priors: int, kinds: int
) -> ir.Value:
    """Boxes (x1, y1, x2, y2) out of offsets to the priors, [N, kinds, P, 4]."""
    op, p = net.op, layer.proto.detection_output_param
    offsets = op.Transpose(op.Reshape(location, [-1, priors, kinds, 4]), perm=[0, 2, 1, 3])
    both = op.Reshape(prior, [2, priors, 4])
    prior_boxes, variance = (
        op.Squeeze(part, [0]) for part in op.node("Split", [both, [1, 1]], outputs=2, axis=0)
    )
    if not p.variance_encoded_in_target:
        offsets = op.Mul(offsets, variance)
    code = enum_name(p, "code_type")
    if code == "CORNER":
        return op.Add(prior_boxes, offsets)
    low, high = op.node("Split", [prior_boxes, [2, 2]], outputs=2, axis=-1)
    extent = op.Sub(high, low)
    first, second = op.node("Split", [offsets, [2, 2]], outputs=2, axis=-1)
    if code == "CORNER_SIZE":
        return op.Concat(op.Add(low, op.Mul(first, extent)), op.Add(high, op.Mul(second, extent)), axis=-1)
    centre = op.Add(op.Mul(op.Add(low, high), 0.5), op.Mul(first, extent))
    half = op.Mul(op.Mul(op.Exp(second), extent), 0.5)
    return op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=-1)


def _upright(net: NetBuilder, layer: Layer, boxes: ir.Value) -> ir.Value:
    """Boxes for NonMaxSuppression: it turns one whose corners are swapped, in Caffe that overlaps nothing."""
    op = net.op
    if enum_name(layer.proto.detection_output_param, "code_type") == "CENTER_SIZE":
        return boxes  # of positive size
    low, high = op.node("Split", [boxes, [2, 2]], outputs=2, axis=-1)
    smallest = op.ReduceMin(op.Sub(high, low), [-1], keepdims=1)
    return op.Where(op.Greater(smallest, 0.0), boxes, 0.0)


def _candidates(net: NetBuilder, layer: Layer, scores: ir.Value, priors: int) -> ir.Value:
    """The scores that take part: of each class but the background the ``top_k`` best; others lowest."""
    op, p = net.op, layer.proto.detection_output_param
    excluded: npt.NDArray[Any] = np.zeros((1, p.num_classes, 1), np.bool_)
    if 0 <= p.background_label_id < p.num_classes:
        excluded[0, p.background_label_id] = True
    scores = op.Where(op.constant(excluded), op.constant(_LOWEST), scores)
    top_k = p.nms_param.top_k
    if not 0 < top_k < priors:
        return scores
    values, places = op.node("TopK", [scores, [top_k]], outputs=2, axis=2)
    places.type = ir.TensorType(ir.DataType.INT64)
    return op.ScatterElements(_filled(net, op.Shape(scores), _LOWEST), places, values, axis=2)


def _best(net: NetBuilder, layer: Layer, scores: ir.Value, where: ir.Value, priors: int) -> ir.Value:
    """Of the boxes at ``where`` [M, 3] the ``keep_top_k`` best of each image, in the order they have."""
    op, p = net.op, layer.proto.detection_output_param
    places = p.num_classes * priors
    if not 0 <= p.keep_top_k < places:
        return where
    kept = op.ScatterND(_filled(net, op.Shape(scores), _LOWEST), where, op.GatherND(scores, where))
    flat = op.Reshape(kept, [-1, places])
    _, best = op.node("TopK", [flat, [p.keep_top_k]], outputs=2, axis=1)
    best.type = ir.TensorType(ir.DataType.INT64)
    ones = _filled(net, op.Shape(best), 1.0)
    chosen = op.ScatterElements(_filled(net, op.Shape(flat), 0.0), best, ones, axis=1)
    chosen = op.GatherND(op.Reshape(chosen, op.Shape(scores)), where)  # [M]
    return op.Gather(where, op.Squeeze(op.NonZero(chosen), [0]), axis=0)


def _filled(net: NetBuilder, shape: ir.Value, value: float) -> ir.Value:
    filled = net.op.ConstantOfShape(shape, value=ir.tensor(np.array([value], np.float32)))
    filled.type = ir.TensorType(ir.DataType.FLOAT)
    return filled


def _nothing_found(net: NetBuilder, rows: ir.Value, location: ir.Value) -> ir.Value:
    """A row (image, -1, ...) per image where there are no rows, else none."""
    op = net.op
    none = op.Cast(op.Equal(op.Shape(rows, start=0, end=1), op.constant([0])), to=_INT64)
    images = op.Mul(op.Shape(location, start=0, end=1), none)  # [1]
    numbers = op.Range(op.constant(0), op.Squeeze(images, [0]), op.constant(1))
    numbers.type = ir.TensorType(ir.DataType.INT64)
    first = op.Unsqueeze(op.Cast(numbers, to=_FLOAT), [1])
    rest = _filled(net, op.Concat(images, op.constant([6]), axis=0), -1.0)
    return op.Concat(first, rest, axis=1)
