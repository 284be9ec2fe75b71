"""The program: its name, its exit status, and how errors end it."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
from typing import Any

import typer

from onnxaccel.cli.output import say
from onnxaccel.errors import AccelError
from onnxaccel.runtime.interrupt import on_signals

_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Wrong usage; from click or, in newer versions of typer, from its own copy of it."""

app = typer.Typer(
    name="onnxaccel",
    help="Convert TensorFlow, PyTorch and Caffe models to ONNX, train them on onnxruntime, and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_BUG = "this is a bug in onnxaccel, --debug shows where"
_NO_SPACE = "make room; $TMPDIR chooses where temporary files go"
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "the limit on a file's size is in the way (ulimit -f)",
    errno.EROFS: "choose another place; $TMPDIR chooses where temporary files go",
    errno.EIO: "the disk or the network that it is on fails",
    errno.EMFILE: "too many files are open (ulimit -n)",
}
"""What to do where the operating system refuses; such an error is no bug of ours."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not faulthandler.is_enabled():  # a library that crashes ends the process, but not without a word
        faulthandler.enable(all_threads=False)
    try:
        with on_signals(signal.default_int_handler):
            status = typer.main.get_command(app).main(words, prog_name="onnxaccel", standalone_mode=False)
            sys.stdout.flush()  # what cannot be written is noticed here, and not when it is too late
    except _UsageError as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except AccelError as error:
        if debug:
            raise
        say(f"error: {error}")
        status = 1
    except BrokenPipeError:  # the reader of our output has left, as with `| head`
        _drop_output()
        status = 0
    except Exception as error:
        if debug:
            raise
        say(f"error: {_machine(error) or f'{type(error).__name__}: {error}; {_BUG}'}")
        if isinstance(error, OSError):
            _drop_output()
        status = 1
    if status == 130:
        say("interrupted; where --checkpoint was given, the state is saved and --resume goes on from it")
    sys.exit(status if isinstance(status, int) else 0)


def _machine(error: Exception) -> str | None:
    """What to say where the machine is at fault, not the program; None where it is not."""
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller --batch-size, or a machine with more"
    advice = _ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
    if advice is None:
        return None
    assert isinstance(error, OSError)
    return f"{error.filename or 'a file'}: {error.strerror}; {advice}"


def _drop_output() -> None:
    """Give up standard output, which Python would try to write once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
