"""Models in their own frameworks beside onnxaccel: `onnxaccel.compare(sources, data)`.

The package is the function as well: ``oa.compare(...)`` is `onnxaccel.compare.frame.compare`, and its parts
are ``onnxaccel.compare.results`` and so on. Candidates' processes import from here too, in any framework's
own Python, so that nothing is imported before it is called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxaccel.compare.results import Comparison


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Comparison:
        """See `onnxaccel.compare.frame.compare`."""
        from onnxaccel.compare.frame import compare

        return compare(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable
