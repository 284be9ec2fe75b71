"""Runs command lines of onnxaccel, one after the other, in a process that may die: ``python -m ... MEMORY``.

Each line of standard input is a JSON list of arguments; each line of output says how it ended.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile


def main() -> None:
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    printed, said = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    os.dup2(printed.fileno(), 1)
    os.dup2(said.fileno(), 2)
    from onnxaccel.cli import main as onnxaccel

    for line in sys.stdin:
        for file in (printed, said):
            file.seek(0)
            file.truncate()
        status: object = None
        try:
            onnxaccel(json.loads(line))
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        said.seek(0)
        words = said.read().decode(errors="replace")
        print(json.dumps({"status": status, "said": words}), file=answers, flush=True)


if __name__ == "__main__":
    main()
