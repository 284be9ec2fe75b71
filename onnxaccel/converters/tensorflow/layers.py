"""How Keras's layers are traced, so that they arrive in ONNX as operators and not as TensorFlow's workings.

While `traceable` is entered, some methods of Keras are replaced by ones that leave a mark (see
`operators.mark`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnxaccel.converters.tensorflow import noise, recurrent
from onnxaccel.converters.tensorflow.operators import Writer, mark, marked
from onnxaccel.errors import ConversionError


@contextmanager
def traceable(model: Any, trainable: bool) -> Iterator[None]:
    """Replace methods of Keras while the block runs.

    Args:
        model: The Keras model to be traced; layers of mixed precision compute in float32 meanwhile.
        trainable: Whether random layers are kept; they pass their input on in inference.
    """
    import keras
    import tensorflow as tf
    from keras.src.applications import convnext
    from keras.src.backend.tensorflow import nn

    layers, function = keras.layers, tf.function

    def inlinable(*args: Any, **settings: Any) -> Any:  # grouped convolutions ask for XLA, an opaque call
        return function(*args, **{**settings, "jit_compile": False})

    methods = noise.patches(layers) if trainable else {}
    if trainable:
        methods[convnext.StochasticDepth] = _stochastic_depth
    replaced = [(kind, "call", call) for kind, call in methods.items()]
    replaced += [(kind, "inner_loop", loop) for kind, loop in recurrent.patches(layers, trainable).items()]
    replaced += [
        (layers.BatchNormalization, "call", _batch_norm(layers.BatchNormalization.call, trainable)),
        (layers.LayerNormalization, "call", _layer_norm(layers.LayerNormalization.call)),
        (nn, "conv", _conv(nn.conv)),
        (nn, "depthwise_conv", _depthwise(nn.depthwise_conv)),
        (tf, "function", inlinable),
    ]
    kept = [(owner, name, vars(owner).get(name)) for owner, name, _ in replaced]
    try:
        for owner, name, replacement in replaced:
            setattr(owner, name, replacement)
        with full_precision(model):
            yield
    finally:
        for owner, name, original in kept:
            if original is None:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)


@contextmanager
def full_precision(model: Any) -> Iterator[None]:
    """Let layers of mixed precision compute in float32: their weights are, and training picks its own."""
    changed = []
    for layer in model._flatten_layers():
        policy = layer.dtype_policy
        if policy.compute_dtype in ("float16", "bfloat16") and policy.variable_dtype == "float32":
            changed.append((layer, policy))
            layer._dtype_policy = type(policy)("float32")
    try:
        yield
    finally:
        for layer, policy in changed:
            layer._dtype_policy = policy


def _stochastic_depth(self: Any, x: Any, training: Any = None) -> Any:
    return noise.shared_dropout(x, self.drop_path_rate, [*range(1, len(x.shape))])


def _batch_norm(original: Any, trainable: bool) -> Any:
    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        import tensorflow as tf

        if not isinstance(self.axis, int) or inputs.dtype not in (tf.float32, tf.float64):
            return original(self, inputs, training=False, mask=mask)
        if mask is not None and trainable and self.trainable:
            raise ConversionError(
                f"layer {self.name!r}: BatchNormalization leaves masked steps out of its statistics, which "
                "has no ONNX form; convert without --trainable, or freeze it"
            )
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(self.moving_mean)
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(self.moving_mean)
        mean, var = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        return mark(
            "batch_norm",
            [inputs, *(tf.cast(value, inputs.dtype) for value in (scale, offset, mean, var))],
            [(inputs.shape, inputs.dtype)],
            epsilon=float(self.epsilon),
            axis=self.axis % len(inputs.shape),
        )[0]

    return call


@marked("batch_norm")
def batch_norm(op: Writer) -> str:
    """BatchNormalization, the channels brought to axis 1."""
    x, *parameters = op.x
    rank = len(op.shape(x) or ())
    if not rank:
        raise ConversionError(
            f"{op.tf_node.name}: BatchNormalization of a tensor of unknown rank; give --shape"
        )
    axis = op.settings["axis"] % rank
    perm = [0, axis, *(i for i in range(1, rank) if i != axis)]
    if axis == 0:
        raise ConversionError("BatchNormalization over the batch axis has no ONNX form")
    moved = axis != 1
    y = op.BatchNormalization(
        op.Transpose(x, perm=perm) if moved else x, *parameters, epsilon=op.settings["epsilon"]
    )
    return op.Transpose(y, perm=[perm.index(i) for i in range(rank)]) if moved else y


def _layer_norm(original: Any) -> Any:
    def call(self: Any, inputs: Any) -> Any:
        import tensorflow as tf

        axes = self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
        rank = len(inputs.shape)
        last = sorted(axis % rank for axis in axes) == list(range(rank - len(axes), rank))
        if not last or not self.scale or inputs.dtype != tf.float32 or getattr(self, "rms_scaling", False):
            return original(self, inputs)
        parameters = [self.gamma, self.beta] if self.center else [self.gamma]
        return mark(
            "layer_norm",
            [inputs, *(tf.convert_to_tensor(p) for p in parameters)],
            [(inputs.shape, inputs.dtype)],
            epsilon=float(self.epsilon),
            axis=-len(axes),
        )[0]

    return call


@marked("layer_norm")
def layer_norm(op: Writer) -> str:
    """LayerNormalization over the last axes."""
    return op.LayerNormalization(*op.x, axis=op.settings["axis"], epsilon=op.settings["epsilon"])


def _conv(original: Any) -> Any:
    def conv(
        inputs: Any,
        kernel: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: Any = None,
        dilation_rate: Any = 1,
    ) -> Any:
        if len(inputs.shape) != 3 or data_format == "channels_first" or inputs.shape[-1] is None:
            return original(inputs, kernel, strides, padding, data_format, dilation_rate)
        groups = inputs.shape[-1] // kernel.shape[1]
        return _series(inputs, kernel, kernel.shape[2], groups, strides, padding, dilation_rate, [2, 1, 0])

    return conv


def _depthwise(original: Any) -> Any:
    def depthwise_conv(
        inputs: Any,
        kernel: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: Any = None,
        dilation_rate: Any = 1,
    ) -> Any:
        if len(inputs.shape) != 3 or data_format == "channels_first":
            return original(inputs, kernel, strides, padding, data_format, dilation_rate)
        _, channels, multiplier = kernel.shape
        out = channels * multiplier
        return _series(inputs, kernel, out, channels, strides, padding, dilation_rate, [1, 2, 0])

    return depthwise_conv


def _series(
    x: Any,
    kernel: Any,
    channels: int,
    groups: int,
    strides: Any,
    padding: str,
    dilation: Any,
    perm: list[int],
) -> Any:
    """A convolution along one axis: ``[batch, steps, channels]``."""
    import tensorflow as tf

    stride, step = (int(v[0] if isinstance(v, (list, tuple)) else v) for v in (strides, dilation))
    extent = step * (kernel.shape[0] - 1) + 1
    before, size = x.shape[1], None
    same = padding.lower() == "same"
    if before is not None:
        size = -(-before // stride) if same else (before - extent) // stride + 1
    total: int | None = 0 if not same else extent - 1 if stride == 1 else None
    if same and size is not None:
        total = max((size - 1) * stride + extent - before, 0)
    pads = None if total is None else [total // 2, total - total // 2]
    return mark(
        "conv1d",
        [x, tf.convert_to_tensor(kernel)],
        [((x.shape[0], size, channels), x.dtype)],
        strides=[stride],
        dilations=[step],
        group=groups,
        pads=pads,
        perm=perm,
    )[0]


@marked("conv1d")
def conv1d(op: Writer) -> str:
    """Conv over [batch, channels, steps]."""
    given = dict(op.settings)
    kernel = op.Transpose(op.x[1], perm=given.pop("perm"))
    if (
        given["group"] > 1 and (op.shape(kernel) or [0, 0])[0] == given["group"]
    ):  # depthwise: [C, multiplier, k]
        channels, multiplier, steps = op.shape(kernel) or []
        kernel = op.Reshape(kernel, [channels * multiplier, 1, steps])
    if given["pads"] is None:
        given = {**given, "auto_pad": "SAME_UPPER"}
        del given["pads"]
    y = op.Conv(op.Transpose(op.x[0], perm=[0, 2, 1]), kernel, **given)
    return op.Transpose(y, perm=[0, 2, 1])
