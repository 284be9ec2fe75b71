"""Variants of a model: each one function that writes a changed copy, run in a process of its own.

To add a variant: a function with its decorator; its docstring's first line is what the table calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxaccel.registry import Registry
from onnxaccel.runtime.optimize.samples import CALIBRATION_SAMPLES, read

Variant = Callable[[Path, Path, Path], None]
"""``variant(source, target, samples)``: read an ONNX file, write another; ``samples`` is a .npz of inputs."""

variant: Registry[Variant] = Registry("model variant")
"""Variants by name, tried in alphabetical order."""


def build(setup: Mapping[str, Any]) -> tuple[None, dict[str, Any]]:
    """Write one variant; the entry of a measuring process (see `onnxaccel.runtime.measure.worker`)."""
    logging.disable(logging.WARNING)
    make = variant.get(setup["variant"])
    assert make is not None
    make(Path(setup["source"]), Path(setup["target"]), Path(setup["samples"]))
    return None, {"bytes": Path(setup["target"]).stat().st_size}


@variant("fp32 fused")
def fused(source: Path, target: Path, samples: Path) -> None:
    """Attention, Gelu, LayerNormalization and their like fused into onnxruntime's own operators."""
    from onnxruntime.transformers import optimizer

    result = optimizer.optimize_model(str(source), model_type="bert", opt_level=1, use_gpu=False)
    if not any(result.get_fused_operator_statistics().values()):
        raise ValueError("nothing to fuse that onnxruntime does not fuse on loading")
    result.save_model_to_file(str(target))


@variant("fp16")
def fp16(source: Path, target: Path, samples: Path) -> None:
    """Weights and activations in float16, inputs and outputs as they were."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    onnx.save(convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True), target)


@variant("int8 dynamic")
def int8_dynamic(source: Path, target: Path, samples: Path) -> None:
    """Weights in int8, activations quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = _prepared(source, target)
    quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)
    _must_differ(target)


@variant("int8 static")
def int8_static(source: Path, target: Path, samples: Path) -> None:
    """Weights and activations in int8, with ranges seen on samples (QuantizeLinear, DequantizeLinear)."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared = _prepared(source, target)
    quantize_static(
        prepared,
        target,
        _Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=not _has_vnni(),
        calibrate_method=CalibrationMethod.MinMax,
    )
    _must_differ(target)


class _Reader:
    """Feeds the samples one by one; onnxruntime's CalibrationDataReader in all but name."""

    def __init__(self, samples: Path) -> None:
        self._feeds = self._read(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    @staticmethod
    def _read(samples: Path) -> Iterator[dict[str, Any]]:
        arrays, batch, _ = read(samples)
        count = min(len(next(iter(arrays.values()))), CALIBRATION_SAMPLES)
        for start in range(0, count - batch + 1, batch):
            yield {name: array[start : start + batch] for name, array in arrays.items()}


def _prepared(source: Path, target: Path) -> Path:
    """The model with constants folded and shapes inferred, which quantization needs."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    initializers = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in initializers]
    del model.graph.value_info[:]  # quantization transposes weights, and stumbles over shapes noted for them
    model.graph.value_info.extend(kept)
    onnx.save(model, prepared)
    return prepared


def _must_differ(target: Path) -> None:
    import onnx

    graph = onnx.load(target).graph
    if not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.initializer):
        raise ValueError("nothing in the model can be quantized")


def _has_vnni() -> bool:
    """Whether the processor adds int8 products without saturating at 16 bits; without, 7 bits are used."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
