"""How gradients become updates, beyond what the optimizer says."""

from __future__ import annotations

from dataclasses import dataclass

from onnxaccel.errors import TrainingError
from onnxaccel.graph.precision import PRECISIONS
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
        precision: "fp32", or "bf16" or "fp16" for products in that type (see `onnxaccel.graph.precision`).
            With "fp16" the loss is scaled up before its gradient is taken, as torch.amp.GradScaler: an update
            with a gradient that is not finite is left out, and halves the scale; 2000 others in a row double
            it.
    """

    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    ema: float | None = None
    precision: str = "fp32"

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled."""
        return self.precision == "fp16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_norm is not None and self.clip_value is not None:
            raise TrainingError("clip gradients by norm or by value, not both")
        if isinstance(self.accumulate, float) or self.accumulate < 1:
            raise TrainingError(f"accumulate is a number of batches, at least 1, not {self.accumulate}")
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}"
            )
        if self.ema is not None and not self.ema < 1:
            raise TrainingError(f"ema must stay below 1, it is {self.ema}")
