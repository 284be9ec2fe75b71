"""How a session runs a model; apart from the model, so that to run a file no more than this is imported."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SessionSettings:
    """How an onnxruntime session runs a model best, as `onnxaccel optimize` measured it.

    Attributes:
        provider: The execution provider, or None for any.
        options: onnxruntime's options for it.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        spinning: Threads without work wait in a loop (faster, and busy) instead of sleeping.
        graph_optimization: "off", "basic", "extended" or "all".
        batch_size: Samples per batch at which throughput was highest, or None.
    """

    provider: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    spinning: bool = True
    graph_optimization: str = "all"
    batch_size: int | None = None
