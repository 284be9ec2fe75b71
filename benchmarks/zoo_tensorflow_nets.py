"""The models of the TensorFlow zoo: keras.applications, and small models that cover Keras's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

APPLICATIONS = (
    "VGG16 ResNet50 ResNet50V2 DenseNet121 InceptionV3 Xception MobileNet MobileNetV2 MobileNetV3Small "
    "MobileNetV3Large NASNetMobile EfficientNetB0 EfficientNetV2B0 ConvNeXtTiny"
).split()


def application(name: str) -> Any:
    """A network of keras.applications with random weights."""
    return getattr(keras.applications, name)(weights=None)


def sequence(*parts: Any, shape: tuple[int | None, ...], dtype: str = "float32") -> Any:
    """A Sequential model with its input."""
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def image(*parts: Any, shape: tuple[int | None, ...] = (16, 16, 3)) -> Any:
    """Image layers, then a classifier over the mean of what they give."""
    return sequence(*parts, layers.GlobalAveragePooling2D(), layers.Dense(5), shape=shape)


def tokens(*parts: Any, masked: bool = False) -> Any:
    """Layers over embedded tokens; token 0 is padding where ``masked``."""
    return sequence(
        layers.Embedding(20, 6, mask_zero=masked), *parts, layers.Dense(3), shape=(9,), dtype="int32"
    )


def series(*parts: Any) -> Any:
    """Layers over a series of vectors."""
    return sequence(*parts, shape=(9, 6))


def residual() -> Any:
    """Convolutions with BatchNormalization and a shortcut."""
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    z = layers.Conv2D(8, 3, padding="same", use_bias=False)(y)
    y = layers.Add()([y, layers.BatchNormalization(momentum=0.9)(z)])
    return keras.Model(x, layers.Dense(4, activation="softmax")(layers.Flatten()(layers.MaxPooling2D()(y))))


def unet() -> Any:
    """Down, up by transposed convolution and by resizing, with concatenation."""
    x = keras.Input((16, 16, 3))
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(a)
    c = layers.Conv2D(8, 3, strides=2, padding="same", activation="elu")(b)
    y = layers.Concatenate()([layers.Conv2DTranspose(8, 3, strides=2, padding="same")(c), b])
    y = layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(y), a])
    return keras.Model(x, layers.Conv2D(2, 1, activation="sigmoid")(y))


def merges() -> Any:
    """Two inputs, two outputs, every merging layer."""
    a, b = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    p, q = layers.Dense(5)(a), layers.Dense(5)(b)
    joined = [
        layer([p, q])
        for layer in (
            layers.Add(), layers.Subtract(), layers.Multiply(), layers.Average(), layers.Maximum(),
            layers.Minimum(), layers.Concatenate(), layers.Dot(axes=1, normalize=True),
        )
    ]  # fmt: skip
    y = layers.Concatenate()(joined)
    return keras.Model([a, b], [layers.Dense(3, name="first")(y), layers.Dense(1, name="second")(p)])


def shared_nested() -> Any:
    """A model within a model, called twice with the same weights."""
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(4)])
    a, b = keras.Input((6,)), keras.Input((6,))
    return keras.Model([a, b], layers.Dense(2)(layers.Subtract()([inner(a), inner(b)])))


def transformer() -> Any:
    """Attention, layer normalization, dropout, a shortcut; causal in the second block."""
    x = keras.Input((9,), dtype="int32")
    y = layers.Embedding(20, 8)(x)
    for causal in (False, True):
        a = layers.MultiHeadAttention(2, 4, dropout=0.1)(y, y, use_causal_mask=causal)
        y = layers.LayerNormalization()(layers.Add()([y, a]))
        h = layers.Dense(16, activation="gelu")(y)
        y = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([y, layers.Dense(8)(h)]))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def attentions() -> Any:
    """Dot-product, additive and grouped-query attention over two series."""
    q, v = keras.Input((5, 8)), keras.Input((7, 8))
    found = [
        layers.Attention(use_scale=True)([q, v]),
        layers.AdditiveAttention()([q, v]),
        layers.GroupQueryAttention(4, 4, 2)(q, v),
    ]
    return keras.Model([q, v], layers.Dense(3)(layers.Concatenate()(found)))


def bahdanau() -> Any:
    """Encoder and decoder: the decoder's LSTM begins with the encoder's states."""
    a, b = keras.Input((7, 4)), keras.Input((5, 4))
    _, h, c = layers.LSTM(6, return_state=True)(a)
    y = layers.LSTM(6, return_sequences=True)(b, initial_state=[h, c])
    return keras.Model([a, b], layers.TimeDistributed(layers.Dense(3))(y))


@keras.saving.register_keras_serializable("zoo")
class Scaled(layers.Layer):
    """A custom layer: a learned scale for each channel, and tensor arithmetic."""

    def build(self, shape: Any) -> None:
        """Add the weight."""
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        """Scale what is positive."""
        return tf.where(x > 0, x * self.scale, tf.math.expm1(x))


@keras.saving.register_keras_serializable("zoo")
class Looping(layers.Layer):
    """A custom layer with a loop and a branch over its data."""

    def build(self, shape: Any) -> None:
        """Add the weight."""
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x: Any) -> Any:
        """Four steps; halved where the sum is positive."""
        y = tf.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, tf.tanh(y @ self.kernel)), [0, x])[1]
        return tf.cond(tf.reduce_sum(y) > 0, lambda: y / 2, lambda: y + 1)


SMALL: dict[str, Callable[[], Any]] = {
    "MLP, activations": lambda: sequence(
        *(
            layers.Dense(7, activation=a)
            for a in "relu gelu elu selu silu softplus softsign tanh sigmoid hard_sigmoid exponential "
            "leaky_relu relu6 mish hard_silu log_softmax celu squareplus".split()
        ),
        shape=(6,),
    ),
    "activation layers": lambda: sequence(
        layers.Dense(6),
        layers.LeakyReLU(),
        layers.PReLU(),
        layers.ELU(0.7),
        layers.ReLU(2.0, 0.1, 0.2),
        layers.Dense(6),
        layers.Softmax(),
        layers.ActivityRegularization(0.1),
        shape=(6,),
    ),
    "residual, BatchNormalization": residual,
    "U-Net": unet,
    "separable, depthwise, grouped": lambda: image(
        layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, strides=2),
        layers.Conv2D(8, 3, groups=4, dilation_rate=2),
        layers.BatchNormalization(scale=False, center=False),
    ),
    "Conv2D, strides, dilation, padding": lambda: image(
        layers.ZeroPadding2D(((1, 2), (0, 1))),
        layers.Conv2D(4, 3, strides=2),
        layers.Conv2D(4, (3, 2), padding="same", strides=2),
        layers.Conv2D(6, 3, dilation_rate=2, padding="same"),
        layers.Cropping2D(1),
    ),
    "pooling 2D": lambda: image(
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.AveragePooling2D(2, 1, padding="same"),
        layers.Conv2D(4, 1),
        layers.AveragePooling2D(2),
        layers.MaxPooling2D((1, 2)),
    ),
    "adaptive and global pooling": lambda: sequence(
        layers.Conv2D(4, 3),
        layers.GlobalMaxPooling2D(keepdims=True),
        layers.Flatten(),
        layers.Dense(3),
        shape=(12, 12, 3),
    ),
    "Conv1D, pooling 1D": lambda: series(
        layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling1D(2),
        layers.SeparableConv1D(8, 2),
        layers.UpSampling1D(2),
        layers.ZeroPadding1D(1),
        layers.Conv1DTranspose(4, 3, strides=2),
        layers.AveragePooling1D(2),
        layers.Cropping1D(1),
        layers.DepthwiseConv1D(2),
        layers.GlobalMaxPooling1D(),
        layers.Dense(2),
    ),
    "Conv3D, pooling 3D": lambda: sequence(
        layers.Conv3D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.MaxPooling3D(2),
        layers.UpSampling3D(2),
        layers.Conv3DTranspose(3, 2, strides=2),
        layers.ZeroPadding3D(1),
        layers.AveragePooling3D(2),
        layers.Cropping3D(1),
        layers.GlobalAveragePooling3D(),
        layers.Dense(2),
        shape=(6, 6, 6, 2),
    ),
    "Conv2DTranspose": lambda: image(
        layers.Conv2DTranspose(4, 3, strides=2, padding="same", use_bias=False),
        layers.Conv2DTranspose(4, 3, strides=2, output_padding=1),
        layers.Conv2DTranspose(3, 2, activation="relu"),
        shape=(7, 7, 3),
    ),
    "normalizations": lambda: image(
        layers.Conv2D(8, 3),
        layers.LayerNormalization(),
        layers.GroupNormalization(4),
        layers.UnitNormalization(),
        layers.RMSNormalization(),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(axis=1),
    ),
    "SpectralNormalization": lambda: image(layers.SpectralNormalization(layers.Conv2D(4, 1))),
    "resizing": lambda: image(
        layers.Rescaling(1 / 127.5, -1),
        layers.Resizing(20, 12),
        layers.Conv2D(4, 3),
        layers.UpSampling2D(2),
        layers.Resizing(9, 9, interpolation="nearest"),
        layers.CenterCrop(8, 8),
        layers.Normalization(mean=[1.0, 2.0, 0.5, 0.1], variance=[1.0, 4.0, 2.0, 1.0]),
    ),
    "reshaping": lambda: sequence(
        layers.Dense(24),
        layers.Reshape((4, 6)),
        layers.Permute((2, 1)),
        layers.Flatten(),
        layers.RepeatVector(3),
        layers.LSTM(4),
        layers.Dense(3),
        shape=(6,),
    ),
    "merging, two inputs and outputs": merges,
    "shared and nested": shared_nested,
    "EinsumDense": lambda: series(layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de")),
    "LSTM": lambda: series(layers.LSTM(5), layers.Dense(3)),
    "LSTM, two layers, backwards": lambda: series(
        layers.LSTM(5, return_sequences=True, go_backwards=True),
        layers.LSTM(4, use_bias=False),
        layers.Dense(3),
    ),
    "LSTM, hard sigmoid, relu": lambda: series(
        layers.LSTM(5, activation="relu", recurrent_activation="hard_sigmoid"), layers.Dense(3)
    ),
    "LSTM, any length": lambda: sequence(layers.LSTM(5), layers.Dense(3), shape=(None, 6)),
    "GRU": lambda: series(layers.GRU(5, return_sequences=True), layers.GRU(4), layers.Dense(3)),
    "GRU, reset before": lambda: series(layers.GRU(5, reset_after=False), layers.Dense(3)),
    "SimpleRNN": lambda: series(
        layers.SimpleRNN(5, return_sequences=True), layers.SimpleRNN(4), layers.Dense(3)
    ),
    "Bidirectional LSTM, GRU": lambda: series(
        layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
        layers.Bidirectional(layers.GRU(4), merge_mode="sum"),
        layers.Dense(3),
    ),
    "masked LSTM": lambda: tokens(layers.LSTM(5), masked=True),
    "masked GRU, Bidirectional": lambda: tokens(
        layers.Bidirectional(layers.GRU(5, return_sequences=True)), layers.GRU(4), masked=True
    ),
    "Masking, SimpleRNN": lambda: series(layers.Masking(), layers.SimpleRNN(5, return_sequences=True)),
    "stacked cells": lambda: series(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]), layers.Dense(3)),
    "encoder and decoder": bahdanau,
    "ConvLSTM2D": lambda: sequence(
        layers.ConvLSTM2D(3, 3), layers.Flatten(), layers.Dense(2), shape=(4, 8, 8, 2)
    ),
    "TimeDistributed": lambda: sequence(
        layers.TimeDistributed(layers.Conv2D(4, 3)),
        layers.TimeDistributed(layers.GlobalMaxPooling2D()),
        layers.LSTM(3),
        shape=(4, 8, 8, 2),
    ),
    "Transformer": transformer,
    "attention": attentions,
    "Dropout and noise": lambda: sequence(
        layers.Dense(12, activation="selu"),
        layers.AlphaDropout(0.2),
        layers.GaussianNoise(0.1),
        layers.GaussianDropout(0.2),
        layers.Dropout(0.3),
        layers.Reshape((3, 4)),
        layers.SpatialDropout1D(0.2),
        layers.Flatten(),
        layers.Dense(3),
        shape=(6,),
    ),
    "augmentation": lambda: image(
        layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.Conv2D(4, 3)
    ),
    "custom layer": lambda: image(layers.Conv2D(4, 3), Scaled()),
    "while and cond": lambda: sequence(Looping(), layers.Dense(2), shape=(6,)),
    "CategoryEncoding, Discretization": lambda: sequence(
        layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5]),
        layers.CategoryEncoding(4, "multi_hot"),
        layers.Dense(3),
        shape=(6,),
    ),
    "any image size": lambda: image(
        layers.Conv2D(4, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        shape=(None, None, 3),
    ),
    "mixed_float16": lambda: _mixed("mixed_float16"),
    "float64": lambda: _mixed("float64"),
}


def _mixed(policy: str) -> Any:
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        return image(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Activation("relu"))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
