"""References for what the built Caffe lacks, written from the layers' definitions, loop by loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def roi_pooling(x: Array, rois: Array, height: int, width: int, scale: float) -> Array:
    """Fast R-CNN's pooling of regions."""
    out = np.zeros((len(rois), x.shape[1], height, width), np.float32)
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (math.floor(c * scale + 0.5) for c in corners)
        bin_h, bin_w = max(y2 - y1 + 1, 1) / height, max(x2 - x1 + 1, 1) / width
        for i in range(height):
            for j in range(width):
                top, bottom = (
                    min(max(v + y1, 0), x.shape[2])
                    for v in (math.floor(i * bin_h), math.ceil((i + 1) * bin_h))
                )
                left, right = (
                    min(max(v + x1, 0), x.shape[3])
                    for v in (math.floor(j * bin_w), math.ceil((j + 1) * bin_w))
                )
                if bottom > top and right > left:
                    out[r, :, i, j] = x[int(image), :, top:bottom, left:right].max((1, 2))
    return out


def sigmoid_cross_entropy(x: Array, target: Array, ignore: int, normalization: str) -> Array:
    total, valid = 0.0, 0
    for z, t in zip(x.astype(np.float64).ravel(), target.ravel(), strict=True):
        if t != ignore:
            total += max(z, 0) - z * t + math.log1p(math.exp(-abs(z)))
            valid += 1
    divisor = {"VALID": valid, "FULL": x.size, "BATCH_SIZE": len(x)}[normalization]
    return np.float32(total / max(divisor, 1))


def infogain(x: Array, label: Array, matrix: Array, ignore: int) -> Array:
    """Over [N, C, H, W], normalised by the labels that count."""
    e = np.exp(x.astype(np.float64))
    log_p = np.log(np.maximum(e / e.sum(1, keepdims=True), 1e-20))
    total, valid = 0.0, 0
    for n in range(x.shape[0]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                k = int(label[n, 0, i, j])
                if k != ignore:
                    total -= float(matrix[0, 0, k] @ log_p[n, :, i, j])
                    valid += 1
    return np.float32(total / max(valid, 1))


def smooth_l1(a: Array, b: Array, inner: Array, outer: Array, sigma: float) -> Array:
    total = 0.0
    for p, q, w, v in zip(a.ravel(), b.ravel(), inner.ravel(), outer.ravel(), strict=True):
        d = abs(float(w) * (float(p) - float(q)))
        total += v * (0.5 * (sigma * d) ** 2 if d < 1 / sigma**2 else d - 0.5 / sigma**2)
    return np.float32(total / len(a))


def accuracy(x: Array, label: Array, top_k: int) -> Array:
    """Ties count against."""
    hits = sum(int((row >= row[int(k)]).sum() - 1 < top_k) for row, k in zip(x, label, strict=True))
    return np.float32(hits / len(x))
