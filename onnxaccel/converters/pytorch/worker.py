"""The confined process behind `sandbox`: ``python worker.py ARCHIVE FOLDER``, requests on standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxaccel.converters.contract import Arrays
from onnxaccel.converters.pytorch.archive import first_line
from onnxaccel.converters.pytorch.confine import confine
from onnxaccel.converters.pytorch.sandbox import MODEL_FILE, SECONDS, receive, send
from onnxaccel.errors import AccelError, ConversionError

if TYPE_CHECKING:
    import torch

    from onnxaccel.converters.pytorch.example import Example

_BASE_MEMORY = 6 * 2**30
_MEMORY_PER_BYTE = 8
_BASE_FILE = 2**20


def main() -> None:
    """Confine the process, then answer requests until the parent closes the pipe."""
    path, folder = Path(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the model prints must not run into the answers
    size = path.stat().st_size
    confine(folder, _BASE_MEMORY + _MEMORY_PER_BYTE * size, 4 * SECONDS, _BASE_FILE + 2 * size)
    model: TorchScript | Program | None = None
    while True:
        try:
            request, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if request["verb"] == "export":
                model = _MODELS[request["format"]](path)
                answer, results = model.export(request)
            else:
                assert model is not None
                answer, results = {}, model.run(arrays)
        except Exception as error:
            message = (
                str(error)
                if isinstance(error, AccelError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            answer, results = {"error": message, "kind": type(error).__name__}, {}
        send(answers, answer, results)


class TorchScript:
    """A TorchScript archive, for torch's TorchScript exporter: torch.export takes no ScriptModule."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            self.module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ConversionError(
                f"torch cannot load this TorchScript ({first_line(error)}): damaged, or optimised for "
                f"one machine; save the module as it was scripted or traced"
            ) from None
        self.names: list[str] = []
        self.outputs: list[str] = []
        self.example: Example | None = None

    def export(self, request: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
        """Write the module as ONNX into the working directory."""
        import torch

        from onnxaccel.converters.pytorch import example, naming
        from onnxaccel.converters.pytorch.export import quiet

        if request["trainable"]:
            raise ConversionError(
                "TorchScript is converted for inference only, since a trace does not tell what was Dropout; "
                "give the state dict with --factory module:callable, or the live module"
            )
        self.names = [a.name for a in self.module.forward.schema.arguments[1:]]
        odd = [a for a in self.module.forward.schema.arguments[1:] if str(a.type) != "Tensor"]
        if odd:
            raise ConversionError(
                f"its forward takes {odd[0].name}: {odd[0].type}, which has no counterpart in an ONNX graph; "
                f"save a version whose forward takes tensors only"
            )
        lines: list[str] = []
        shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
        dim_names = {  # keys of JSON are strings
            name: {int(axis): dim for axis, dim in dims.items()}
            for name, dims in request["dim_names"].items()
        }
        self.example = (
            example.from_shapes(self.module, self.names, shapes, dim_names)
            if shapes
            else example.inferred(self.module, self.names, lines.append)
        )
        with torch.no_grad():
            self.outputs, _ = naming.output_leaves(self.module(*self.example.args))
        axes = {
            name: {axis: dim or f"{name}_{axis}" for axis, dim in dynamic.items()}
            for name, dynamic in zip(self.names, self.example.dynamic, strict=True)
        }
        try:
            with quiet(), torch.no_grad():
                torch.onnx.export(
                    self.module,
                    self.example.args,
                    MODEL_FILE,
                    dynamo=False,
                    opset_version=request["opset"],
                    input_names=self.names,
                    output_names=self.outputs,
                    dynamic_axes=axes,
                )
        except Exception as error:
            raise ConversionError(f"torch.onnx cannot export this TorchScript: {first_line(error)}") from None
        answer = {"trainable": None, "frozen": [], "progress": lines, "dynamic": self.example.dynamic}
        return answer, self.example.arrays(self.names)

    def run(self, feed: Arrays) -> Arrays:
        """The module's outputs for a feed."""
        import torch

        from onnxaccel.converters.pytorch.reference import run

        assert self.example is not None
        tensors = run(self.module, self.example, [torch.from_numpy(feed[name]) for name in self.names])
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}


class Program:
    """An exported program (.pt2)."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            self.program = torch.export.load(path)
        except Exception as error:
            raise ConversionError(
                f"a damaged exported program ({first_line(error)}); copy the file again"
            ) from None

        self.module: torch.nn.Module | None = None
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.example: Example | None = None

    def export(self, request: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
        """Write the program as ONNX into the working directory."""
        import onnx_ir as ir
        import torch

        from onnxaccel.converters.pytorch import naming
        from onnxaccel.converters.pytorch.example import Example
        from onnxaccel.converters.pytorch.export import export_program
        from onnxaccel.converters.pytorch.trainable import set_mode

        if request["shapes"]:
            raise ConversionError("the shapes of its inputs are recorded in it; --shape cannot change them")
        if self.program.example_inputs is None:
            raise ConversionError(
                "it records no example inputs; export the module again with torch.export.save"
            )
        args, kwargs = self.program.example_inputs
        self.example = Example(tuple(args), dict(kwargs), [])
        trainable: bool = request["trainable"]
        set_mode(self.program, training=trainable)
        model, frozen = export_program(self.program, request["opset"], trainable)
        naming.canonical_parameters(model, self.program.state_dict)
        set_mode(self.program, training=False)
        self.module = self.program.module(check_guards=False)  # guards are source code
        with torch.no_grad():
            names, _ = naming.output_leaves(self.module(*args, **kwargs))
        self.outputs = naming.rename_outputs(model, names)
        self.inputs = [value.name or "" for value in model.graph.inputs]
        names = naming.trained(model, self.program.named_parameters())
        ir.save(model, MODEL_FILE, external_data=f"{MODEL_FILE}.data")
        answer = {"trainable": names if trainable else None, "frozen": frozen, "progress": [], "dynamic": []}
        return answer, self.example.arrays(self.inputs)

    def run(self, feed: Arrays) -> Arrays:
        """The program's outputs for a feed."""
        import torch

        from onnxaccel.converters.pytorch.reference import run

        assert self.module is not None and self.example is not None
        tensors = run(self.module, self.example, [torch.from_numpy(feed[name]) for name in self.inputs])
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}


_MODELS: dict[str, type[TorchScript] | type[Program]] = {
    "torchscript": TorchScript,
    "exported-program": Program,
}


if __name__ == "__main__":
    main()
