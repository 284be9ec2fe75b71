"""Engine "ort-training": onnxruntime's own training packages, which ended with 1.19.2.

It differentiates forward and loss by itself and holds parameters and optimizer state in its own checkpoint.
What it would differentiate wrongly, or cannot carry from step to step, is refused before anything runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxaccel.errors import ModelError, ProviderError, TrainingError, UnsupportedOperator
from onnxaccel.files import scratch_folder
from onnxaccel.graph.autodiff import prune
from onnxaccel.graph.builder import Builder, describe, dims_of
from onnxaccel.graph.losses import TARGET, Loss
from onnxaccel.graph.model import Model, name_of, tensor_of
from onnxaccel.graph.optimizers import SGD, AdamW, Optimizer
from onnxaccel.graph.parameters import trainable
from onnxaccel.graph.training import TrainingStep, evaluation_step
from onnxaccel.protect.memory import memory_folder
from onnxaccel.runtime.session import short
from onnxaccel.runtime.upload import Batch

Arrays = dict[str, npt.NDArray[Any]]

INSTALL = (
    "engine ort-training needs onnxruntime-training-cpu 1.19.2 in place of onnxruntime, in an environment of "
    "its own: pip uninstall -y onnxruntime && pip install onnxruntime-training-cpu==1.19.2 torch cerberus"
)
STATE = "ort-training/checkpoint"
"""Name of the entry of `OrtTrainingStepper.state` that holds the engine's own checkpoint, as bytes."""


class OrtTrainingStepper:
    """Advances a training run by onnxruntime.training; the interface is that of `Stepper`.

    Args:
        model: The model in inference form; not changed.
        loss: The loss.
        optimizer: SGD without momentum, or AdamW, which follows the variant of Hugging Face here: it decays
            weights after the step, so that curves differ from torch's by up to 4e-3.
        threads: Threads within an operator; 0 leaves it to onnxruntime.

    Raises:
        ProviderError: The training package is not installed.
        UnsupportedOperator: The engine has no gradient for an operator, or a wrong one.
        TrainingError: The engine has no such optimizer.
    """

    def __init__(self, model: Model, loss: Loss, optimizer: Optimizer, threads: int = 0) -> None:
        try:
            from onnxruntime.training import api, artifacts
        except ImportError as error:
            raise ProviderError(f"{INSTALL} ({error})") from None
        self._api = api
        self.step = _forward(model, loss)
        scratch = ExitStack()
        place = scratch_folder() if model.key is None else memory_folder()
        self._path = scratch.enter_context(place)
        weakref.finalize(self, scratch.close)
        ort.set_default_logger_severity(4)  # else each graph transformer writes a line
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 4
        try:
            artifacts.generate_artifacts(
                self.step.model.to_proto(),
                requires_grad=self.step.parameters,
                optimizer=_optimizer(optimizer),
                artifact_directory=self._path,
            )
        except Exception as error:  # its exceptions share no base class but Exception
            raise UnsupportedOperator(
                f"onnxruntime {ort.__version__} cannot differentiate the model: {short(error)}; "
                "train with --engine graph"
            ) from None
        for part in ("training", "optimizer"):
            _clamp(self._path / f"{part}_model.onnx")
        self._load(self._path / "checkpoint")

    def run(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        target: npt.NDArray[Any],
        lr: float,
        first: bool = True,
        last: bool = True,
    ) -> tuple[float, float]:
        """Advance by one batch, as `Stepper.run`; each is an update. Right predictions are not counted."""
        given = {**feed, TARGET: target}
        self._optimizer.set_learning_rate(lr)
        try:
            value = self._module(*[np.ascontiguousarray(given[name]) for name in self._names])
        except Exception as error:
            raise TrainingError(f"the training step does not run on this batch: {short(error)}") from None
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return float(value), float("nan")

    def ahead(self, batches: Iterable[Batch], check: object) -> Iterable[Batch]:
        """The batches as they are."""
        return batches

    def counted(self, samples: int) -> int:
        """How many samples the last step saw; all of them are this process's."""
        return samples

    def buffers(self) -> dict[str, ort.OrtValue]:
        """The parameters as they are now."""
        return {
            name: ort.OrtValue.ortvalue_from_numpy(self._parameter(name)) for name in self.step.parameters
        }

    def previous(self) -> Arrays:
        """Nothing: what was carried before the last step is gone."""
        return {}

    def state(self) -> Arrays:
        """A copy of the parameters, and of the engine's own checkpoint with the optimizer's state."""
        file = self._path / "saved"
        self._api.CheckpointState.save_checkpoint(self._checkpoint, str(file), True)
        saved = np.frombuffer(file.read_bytes(), np.uint8)
        return {name: self._parameter(name).copy() for name in self.step.parameters} | {STATE: saved}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set everything that is carried.

        Raises:
            ModelError: A tensor is missing or has another shape or type.
        """
        for name in (*self.step.parameters, STATE):
            if name not in state:
                raise ModelError(f"the state lacks {name!r}")
        for name in self.step.parameters:
            start = self.step.initial[name]
            if state[name].shape != start.shape or state[name].dtype != start.dtype:
                raise ModelError(f"{name!r} has another shape or type in the state than in the model")
        file = self._path / "loaded"
        file.write_bytes(state[STATE].tobytes())
        try:
            self._load(file)
        except Exception as error:
            raise ModelError(f"onnxruntime cannot read its state: {short(error)}") from None
        for name in self.step.parameters:
            self._checkpoint.parameters[name].data = np.ascontiguousarray(state[name])

    def _load(self, checkpoint: Path) -> None:
        self._checkpoint = self._api.CheckpointState.load_checkpoint(str(checkpoint))
        training = str(self._path / "training_model.onnx")
        self._module = self._api.Module(training, self._checkpoint, session_options=self._options)
        self._optimizer = self._api.Optimizer(str(self._path / "optimizer_model.onnx"), self._module)
        self._module.train()
        self._names = self._module.input_names()

    def _parameter(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._checkpoint.parameters[name].data
        return array


def _optimizer(optimizer: Optimizer) -> Any:
    """The engine's block for an optimizer."""
    from onnxruntime.training import onnxblock

    if optimizer.groups:
        raise TrainingError("engine ort-training has no groups of parameters; train with --engine graph")
    if type(optimizer) is SGD and not (optimizer.momentum or optimizer.weight_decay):
        return onnxblock.optim.SGD()
    if type(optimizer) is AdamW and not optimizer.amsgrad:
        betas, eps, decay = optimizer.betas, optimizer.eps, optimizer.weight_decay
        return onnxblock.optim.AdamW(betas=betas, eps=eps, weight_decay=decay)
    raise TrainingError(
        "engine ort-training has SGD without momentum and weight decay, and AdamW; train with --engine graph"
    )


def _forward(model: Model, loss: Loss) -> TrainingStep:
    """Forward pass and loss, Dropout switched to training, which is what the engine differentiates."""
    graph = evaluation_step(model, loss)
    del graph.graph.outputs[1:]
    graph.outputs[0].shape = ir.Shape([])
    prune(graph)
    _refuse(graph)
    op = Builder(graph.graph, prefix="engine")
    for node in list(graph.graph):
        if node.op_type == "Dropout" and node.name not in model.metadata.frozen:
            node.resize_inputs(3)
            if node.inputs[1] is None:
                node.replace_input_with(1, op.constant(np.float32(0.5)))
            node.replace_input_with(2, op.constant(np.array(True)))
            _with_outputs(op, node, 2)
        elif node.op_type == "LayerNormalization":
            _with_outputs(op, node, 3)
    values = [p for p in trainable(graph) if name_of(p) in graph.graph.initializers]
    names = [name_of(p) for p in values]
    if not names:
        raise ModelError("no trainable parameter influences the loss; convert the model with --trainable")
    start = {name_of(p): tensor_of(p) for p in values}
    classes = loss.classes(loss.prediction(model))
    return TrainingStep(
        graph, None, model.input_names(), {name: name for name in names}, start, names, classes
    )


def _with_outputs(op: Builder, node: ir.Node, count: int) -> None:
    """Give a node outputs that are optional, and that the engine's gradient reads all the same."""
    first = len(node.outputs)
    node.resize_outputs(max(count, first))
    for output in node.outputs[first:]:
        output.name = op.fresh("saved")


def _refuse(model: Model) -> None:
    """Refuse what the engine differentiates wrongly without a word (measured), or cannot carry.

    Raises:
        UnsupportedOperator: There is such a node.
    """
    for node in model.graph:
        reason = None
        if node.op_type == "BatchNormalization":
            reason = "its running statistics are not carried, and with fixed ones its gradient is wrong"
        elif node.op_type == "Where" and len({str(x and dims_of(x)) for x in node.inputs}) > 1:
            reason = "with inputs of several shapes its gradient is wrong"
        elif node.op_type == "Split" and any(not y.uses() and not y.is_graph_output() for y in node.outputs):
            reason = "with an output that nothing reads its gradient is wrong"
        if reason is not None:
            raise UnsupportedOperator(
                f"engine ort-training refuses {describe(node)}: {reason}; train with --engine graph"
            )


def _clamp(path: Path) -> None:
    """Write a model with the IR version that onnxruntime 1.19.2 reads; onnx writes its own newest."""
    proto = onnx.load(path)
    proto.ir_version = min(proto.ir_version, 10)
    onnx.save(proto, path)
