"""How gradients become updates, beyond what the optimizer says."""

from __future__ import annotations

from dataclasses import dataclass

from onnxaccel.errors import TrainingError
from onnxaccel.graph.settings import Settings


@dataclass(frozen=True)
class Recipe(Settings):
    """Settings of a training step.

    Attributes:
        clip_norm: Largest L2 norm of all gradients together; above it they are scaled down by
            ``clip_norm / (norm + 1e-6)``, as torch.nn.utils.clip_grad_norm_.
        clip_value: Largest absolute value of a gradient's element, as torch.nn.utils.clip_grad_value_.
        accumulate: Batches per update. Their gradients are averaged by what each batch counts, so that the
            update is that of one batch with all their samples (BatchNormalization's statistics aside).
        ema: Decay of an exponential moving average of the parameters: ``a = ema a + (1 - ema) p`` after each
            update, from the parameters at the start on, as torch's get_ema_multi_avg_fn.
    """

    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_norm is not None and self.clip_value is not None:
            raise TrainingError("clip gradients by norm or by value, not both")
        if isinstance(self.accumulate, float) or self.accumulate < 1:
            raise TrainingError(f"accumulate is a number of batches, at least 1, not {self.accumulate}")
        if self.ema is not None and not self.ema < 1:
            raise TrainingError(f"ema must stay below 1, it is {self.ema}")
