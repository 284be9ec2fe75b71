"""A text classifier: embedding 64, LSTM 64, a dense layer on its last state."""

from __future__ import annotations

from typing import Any

from onnxaccel.models.reference import Inputs, Reference, Shape, reference

VOCABULARY = 1000
WIDTH = 64


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    return {
        "embedding.weight": (VOCABULARY, WIDTH),
        "lstm.weight_ih_l0": (4 * WIDTH, WIDTH),
        "lstm.weight_hh_l0": (4 * WIDTH, WIDTH),
        "lstm.bias_ih_l0": (4 * WIDTH,),
        "lstm.bias_hh_l0": (4 * WIDTH,),
        "fc.weight": (classes, WIDTH),
        "fc.bias": (classes,),
    }


def pytorch(input_shape: Shape = (32,), classes: int = 10) -> Any:
    """The torch module: tokens [N, length] int64 to logits [N, classes].

    PyTorch's LSTM has two biases, which add up, Keras's has one: the second is frozen, or both would move and
    their sum twice as far.
    """
    import torch
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
            self.fc = nn.Linear(WIDTH, classes)
            self.lstm.bias_hh_l0.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, _ = self.lstm(self.embedding(x))
            return self.fc(states[:, -1])  # type: ignore[no-any-return]

    return Classifier()


def tensorflow(input_shape: Shape = (32,), classes: int = 10) -> Any:
    """The Keras model: tokens [N, length] int64 to logits [N, classes]."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input(input_shape, dtype="int64", name="data"),
            layers.Embedding(VOCABULARY, WIDTH, name="embedding"),
            layers.LSTM(WIDTH, name="lstm"),
            layers.Dense(classes, name="fc"),
        ],
        name="lstm_classifier",
    )


reference("lstm_classifier")(
    Reference(
        "Text classifier: embedding 64, LSTM 64, dense; 1000 tokens",
        Inputs("tokens", (32,), vocabulary=VOCABULARY),
        _shapes,
        pytorch,
        tensorflow,
        caffe=None,
    )
)
