"""Archives that hold programs, TorchScript and exported programs, converted in a process of their own.

The process is confined (see `worker`), has a time limit for each answer, and works in a folder that is
thrown away. It gives back an ONNX file in that folder and arrays, never pickles.
"""

from __future__ import annotations

import io
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.pytorch import scan
from onnxaccel.errors import ConversionError, MissingWeights
from onnxaccel.files import scratch_folder
from onnxaccel.graph.model import Model

SECONDS = 600
"""How long the process may take for one answer."""

MODEL_FILE = "model.onnx"
"""Where the process leaves the model, in its folder."""

_LENGTH = 8


def convert_archive(path: Path, format_name: str, options: Options) -> Conversion:
    """Convert a TorchScript archive or an exported program.

    Raises:
        ConversionError: The archive is damaged or hostile, the shapes of its inputs are not known, torch
        cannot
            export it, or its process ran out of memory or time.
    """
    import torch

    from onnxaccel.converters.pytorch import finish, refuse_cuts
    from onnxaccel.converters.pytorch.naming import own_weights
    from onnxaccel.converters.pytorch.reference import integer_ranges

    refuse_cuts(options)
    look_through = scan.scan_torchscript if format_name == "torchscript" else scan.scan_exported_program
    look_through(path, options.trust_pickle)
    options.progress("loading and exporting in a confined process")
    sandbox = Sandbox(path)
    try:
        request = {
            "format": format_name,
            "shapes": dict(options.shapes),
            "dim_names": {name: dict(dims) for name, dims in options.dim_names.items()},
            "opset": options.opset,
            "trainable": options.trainable,
        }
        answer, example = sandbox.ask("export", request)
        for line in answer["progress"]:
            options.progress(line)
        graph_model = Model.load(sandbox.folder / MODEL_FILE).ir
        own_weights(graph_model)
        dynamic = [{int(axis): name for axis, name in axes.items()} for axes in answer["dynamic"]]
        model = finish(graph_model, format_name, dynamic)
    except BaseException:
        sandbox.close()
        raise
    model.metadata.trainable = answer["trainable"]
    model.metadata.frozen = answer["frozen"]
    return Conversion(
        model=model,
        reference=lambda feed: sandbox.ask("run", {}, feed)[1],
        reference_name=f"PyTorch {torch.__version__}",
        ranges=integer_ranges(model.ir),
        example=example,
        close=sandbox.close,
    )


class Sandbox:
    """A confined process that holds one model.

    Args:
        path: The archive, scanned already.
        seconds: How long it may take for one answer.

    Attributes:
        folder: Where it may write; removed by `close`.
    """

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self._scratch = ExitStack()
        self.folder = self._scratch.enter_context(scratch_folder())
        self._seconds = seconds
        self._path = path
        self._errors = tempfile.TemporaryFile()
        worker = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(worker), str(path.resolve()), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=str(self.folder),
            env=_environment(str(self.folder)),
            start_new_session=True,  # Ctrl-C reaches the parent, which closes this one
        )

    def ask(
        self, verb: str, request: dict[str, Any], arrays: Arrays | None = None
    ) -> tuple[dict[str, Any], Arrays]:
        """Send a request and wait for its answer.

        Raises:
            ConversionError: The process refused, died, or took too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, {"verb": verb, **request}, arrays or {})
            answer, results = receive(_Deadline(self._process.stdout, self._seconds))
        except (BrokenPipeError, EOFError):
            raise ConversionError(f"{self._path}: {self._ending()}") from None
        except TimeoutError:
            raise ConversionError(
                f"{self._path}: stopped, its code took more than {self._seconds:g} seconds"
            ) from None
        if "error" in answer:
            kind = MissingWeights if answer["kind"] == "MissingWeights" else ConversionError
            raise kind(f"{self._path}: {answer['error']}")
        return answer, results

    def close(self) -> None:
        """End the process and remove its folder."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        self._scratch.close()

    def _ending(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f"signal {-code}" if code < 0 else f"exit status {code}"
        last = f": {lines[-1]}" if lines else ""
        return f"its code ended the process that ran it ({reason}{last}), perhaps by the memory limit"


class _Deadline:
    """Reads of a pipe that end at a deadline."""

    def __init__(self, stream: IO[bytes], seconds: float) -> None:
        self._descriptor = stream.fileno()
        self._end = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        chunks = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while len(chunks) < size:
                if not selector.select(max(self._end - time.monotonic(), 0)):
                    raise TimeoutError
                chunk = os.read(self._descriptor, min(size - len(chunks), 1 << 20))
                if not chunk:
                    raise EOFError
                chunks += chunk
        return bytes(chunks)


def send(stream: IO[bytes], header: dict[str, Any], arrays: Arrays) -> None:
    """Write one message: lengths, JSON, npz."""
    text = json.dumps(header).encode()
    payload = io.BytesIO()
    np.savez(payload, **arrays)  # type: ignore[arg-type]
    body = payload.getvalue()
    stream.write(len(text).to_bytes(_LENGTH, "little") + len(body).to_bytes(_LENGTH, "little") + text + body)
    stream.flush()


def receive(stream: Any) -> tuple[dict[str, Any], Arrays]:
    """Read one message; arrays of objects, which would be pickles, are refused by numpy."""
    lengths = stream.read(2 * _LENGTH)
    if len(lengths) < 2 * _LENGTH:
        raise EOFError
    text = stream.read(int.from_bytes(lengths[:_LENGTH], "little"))
    body = stream.read(int.from_bytes(lengths[_LENGTH:], "little"))
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return json.loads(text), dict(arrays)


def _environment(folder: str) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if k in ("PATH", "LD_LIBRARY_PATH", "LANG", "OMP_NUM_THREADS", "SYSTEMROOT")
    }
    package_parent = str(Path(__file__).resolve().parents[3])
    return kept | {
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONPATH": os.pathsep.join([package_parent, *filter(None, sys.path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }
