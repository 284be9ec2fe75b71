"""One target under libFuzzer: ``python -m tests.fuzz.one NAME CORPUS [libFuzzer's options]``."""

from __future__ import annotations

import logging
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["onnxaccel"]):
    from tests.fuzz import targets

from onnxaccel.errors import AccelError


def main() -> None:
    name = sys.argv.pop(1)
    function = targets.target.get(name)
    assert function is not None, name
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    def once(data: bytes) -> None:
        try:
            function(data)
        except AccelError:
            return

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
