"""The converted model in onnxruntime, on one execution provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxaccel.compare.native.common import steps


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """See `onnxaccel.compare.native.common`; "model" is the file, "settings" how it runs."""
    import onnxruntime

    from onnxaccel.graph.session import SessionSettings
    from onnxaccel.runtime.providers import resolve
    from onnxaccel.runtime.session import Session

    settings = SessionSettings(**setup["settings"])
    provider = resolve(settings.provider or "cpu", settings.options)
    session = Session(Path(setup["model"]), provider, setup["threads"], settings)
    raw, names, outputs = session.raw, setup["names"], setup["outputs"]
    facts = {
        "versions": {"onnxruntime": onnxruntime.__version__},
        "elsewhere": {operator: len(nodes) for operator, nodes in session.elsewhere.items()},
    }
    return steps(setup, lambda feed: raw.run(outputs, dict(zip(names, feed, strict=True)))), facts
