"""The program: its name, its exit status, and how errors end it."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from onnxaccel.cli.output import say
from onnxaccel.errors import AccelError

_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Wrong usage; from click or, in newer versions of typer, from its own copy of it."""

app = typer.Typer(
    name="onnxaccel",
    help="Convert TensorFlow, PyTorch and Caffe models to ONNX, train them on onnxruntime, and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        status = typer.main.get_command(app).main(words, prog_name="onnxaccel", standalone_mode=False)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        if debug:
            raise
        say(f"error: {type(error).__name__}: {error}; this is a bug in onnxaccel, --debug shows where")
        status = 1
    if status == 130:
        say("interrupted; where --checkpoint was given, the state is saved and --resume goes on from it")
    sys.exit(status if isinstance(status, int) else 0)
