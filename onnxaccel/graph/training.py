"""One training step as one graph: forward, loss, backward and optimizer, in standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.autodiff import backward, prune
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.devices import lower
from onnxaccel.graph.losses import LABELS, Loss, as_loss
from onnxaccel.graph.model import Model, name_of, tensor_of
from onnxaccel.graph.normalize import differentiable, normalize
from onnxaccel.graph.optimizers import Optimizer
from onnxaccel.graph.parameters import role_of, trainable
from onnxaccel.graph.precision import PRECISIONS, to_mixed
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training_form import Carried, pool_before_relu, to_training_form
from onnxaccel.graph.update import FIRST, GRADIENT, SCALE, WEIGHT, accumulated, check_groups, update

LEARNING_RATE = "onnxaccel.learning_rate"
LOSS = "onnxaccel.loss"
CORRECT = "onnxaccel.correct"
SCORES = "onnxaccel.scores"


@dataclass
class TrainingStep:
    """The graph that computes one step of training, or the two that do so in turn.

    One graph goes from the batch to the new parameters. Split, the first goes from a batch to the running sum
    of gradients, which may then be summed over several batches or processes, and the second from that sum to
    the new parameters.

    Attributes:
        model: The graph. Inputs: the model's inputs, TARGET, LEARNING_RATE (a float scalar) and
            everything carried. Outputs: "loss", "correct" where asked for, and the new value of everything
            carried. Split: instead of LEARNING_RATE there is FIRST (a bool scalar: begin a new sum), and
            what is carried are the running statistics, and under "<parameter>/gradient" and WEIGHT the sums
            of gradients, each times what its batch counts, and of these counts.
        update: Split, the second graph. Inputs: LEARNING_RATE, the sums, the parameters, and what else is
            carried. Outputs: the new value of everything carried but statistics and sums.
        inputs: Names of the model's own inputs.
        carried: For each tensor that outlives a step (parameters, running statistics, optimizer state) the
            name of the output that holds its next value, by the name of its input.
        initial: The values to start from, by input name.
        parameters: Names of the trained parameters.
        classes: The number of classes that labels must be below, or None.
    """

    model: Model
    update: Model | None
    inputs: list[str]
    carried: dict[str, str]
    initial: dict[str, npt.NDArray[Any]]
    parameters: list[str]
    classes: int | None


def training_step(
    model: Model,
    loss: str | Loss,
    optimizer: Optimizer,
    recipe: Recipe | None = None,
    *,
    metrics: bool = False,
    seed: int = 0,
    split: bool = False,
    device: str = "cpu",
) -> TrainingStep:
    """Build the training step of a model.

    Args:
        model: The model in inference form; not changed. Its first output is what the loss is taken of.
        loss: The loss, or its name.
        optimizer: The optimizer's settings.
        metrics: Also count the right predictions (losses over class labels only).
        seed: Seed of Dropout's masks.
        recipe: Clipping, accumulation and averaging; none of them when None.
        split: Give two graphs also where gradients are not accumulated.
        device: What the graph will run on, "cpu" or "cuda": the forms of gradients are chosen for it, and
            what it has no kernel for is replaced.

    Raises:
        UnsupportedOperator: An operator between the loss and a parameter has no gradient rule.
        ModelError: The model has nothing to train, or its output does not fit the loss.
        TrainingError: A group of the optimizer matches no parameter.
    """
    inputs = model.input_names()
    model = model.copy()
    roles = {name: role_of(value) for name, value in model.graph.initializers.items()}
    differentiable(model)
    graph = model.graph
    loss = as_loss(loss)
    prediction = loss.prediction(model)
    target = loss.target(prediction)
    op = Builder(graph, prefix="step", device=device)
    pool_before_relu(model)
    carried = to_training_form(model, op, seed)
    recipe = recipe or Recipe()
    parameters = trainable(model)
    low = PRECISIONS[recipe.precision]
    if low is not None:
        place = model.outputs.index(prediction)
        to_mixed(model, op, low, parameters)
        prediction = model.outputs[place]
    result = loss.write(op, prediction, target)
    scale = ir.val(SCALE, ir.DataType.FLOAT, ir.Shape([])) if recipe.scales else None
    seed_gradient = result.gradient if scale is None else op.Mul(result.gradient, scale)
    gradients = backward(op, {result.at: seed_gradient}, parameters)
    parameters = [p for p in parameters if p in gradients]
    if not parameters:
        raise ModelError("no trainable parameter influences the loss; convert the model with --trainable")

    rate = ir.val(LEARNING_RATE, ir.DataType.FLOAT, ir.Shape([]))
    check_groups(optimizer.groups, roles, [name_of(p) for p in parameters])
    gradients = {p: gradients[p] for p in parameters}
    second, updated, control = None, list[Carried](), rate
    if split or recipe.accumulate > 1:
        second, updated = _update_graph(model, optimizer, parameters, rate, roles, recipe)
        control = ir.val(FIRST, ir.DataType.BOOL, ir.Shape([]))
        carried += accumulated(op, gradients, result.weight, control)
    else:
        carried += update(op, optimizer, gradients, rate, roles, recipe, scale)

    outputs = {LOSS: result.value}
    if metrics and target is not None:
        outputs |= _counted(op, loss, result.scores, target)
    targets = [target] if target is not None else []
    held = parameters + ([scale] if scale is not None else []) if second is not None else []
    _set_interface(model, [*model.inputs, *targets, control, *held], carried, outputs)
    prune(model)
    lower(model, device)
    carried += updated
    return TrainingStep(
        model,
        second,
        inputs,
        carried={name_of(entry.old): f"{entry.old.name}/next" for entry in carried},
        initial={name_of(entry.old): entry.start for entry in carried},
        parameters=[name_of(p) for p in parameters],
        classes=loss.classes(prediction),
    )


def evaluation_step(
    model: Model, loss: str | Loss, fed: Sequence[str] = (), *, scores: bool = False
) -> Model:
    """Build the graph that evaluates one batch: "loss", and "correct" for losses over class labels.

    Args:
        model: The model in inference form; not changed.
        loss: The loss, or its name.
        fed: Names of initializers to turn into inputs, so that a trainer can evaluate weights where they lie.
        scores: Also give SCORES, which metrics are computed from: the class scores, or the predicted values.

    Returns:
        A graph with the model's inputs, TARGET and ``fed`` as inputs.

    Raises:
        ModelError: The model's output does not fit the loss.
    """
    model = model.copy()
    normalize(model)
    loss = as_loss(loss)
    prediction = loss.prediction(model)
    target = loss.target(prediction)
    op = Builder(model.graph, prefix="evaluation")
    result = loss.write(op, prediction, target)
    outputs = {LOSS: result.value}
    if target is not None:
        outputs |= _counted(op, loss, result.scores, target)
    if scores:
        outputs[SCORES] = result.scores if loss.kind == LABELS else prediction
    held = [model.graph.initializers[name] for name in fed]
    targets = [target] if target is not None else []
    _set_interface(model, [*model.inputs, *targets, *held], [], outputs)
    prune(model)
    return model


def _counted(op: Builder, loss: Loss, scores: ir.Value, target: ir.Value) -> dict[str, ir.Value]:
    """CORRECT, where the loss has classes."""
    correct = loss.correct(op, scores, target)
    return {} if correct is None else {CORRECT: correct}


def _update_graph(
    model: Model,
    optimizer: Optimizer,
    parameters: list[ir.Value],
    rate: ir.Value,
    roles: dict[str, str | None],
    recipe: Recipe,
) -> tuple[Model, list[Carried]]:
    """The graph from the sums of gradients to the new parameters, and what it carries on."""
    own = [ir.val(name_of(p), const_value=ir.tensor(tensor_of(p), name=p.name)) for p in parameters]
    graph = ir.Graph([], [], nodes=[], initializers=own, opset_imports={"": model.opset}, name="update")
    second = Model(ir.Model(graph, ir_version=model.ir.ir_version))
    second.key = model.key
    op = Builder(graph, prefix="update")
    sums = [ir.val(f"{p.name}{GRADIENT}", p.dtype, p.shape) for p in parameters]
    weight = ir.val(WEIGHT, ir.DataType.FLOAT, ir.Shape([]))
    share = op.Reciprocal(op.Where(op.Equal(weight, 0.0), 1.0, weight))
    gradients = {p: op.Mul(total, share) for p, total in zip(own, sums, strict=True)}
    scale = ir.val(SCALE, ir.DataType.FLOAT, ir.Shape([])) if recipe.scales else None
    carried = update(op, optimizer, gradients, rate, roles, recipe, scale)
    _set_interface(second, [rate, weight, *sums], carried, {})
    return second, carried


def _set_interface(
    model: Model, inputs: list[ir.Value], carried: list[Carried], outputs: dict[str, ir.Value]
) -> None:
    """Set inputs and outputs, in order, those of what is carried last; no input stays an initializer."""
    graph = model.graph
    inputs = [*inputs, *(entry.old for entry in carried)]
    outputs = outputs | {f"{entry.old.name}/next": entry.new for entry in carried}
    for value in inputs:
        graph.initializers.pop(name_of(value), None)
        value.const_value = None
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    graph.outputs.clear()
    op = Builder(graph, prefix="out")
    for name, value in outputs.items():
        free = value.producer() is not None and not value.is_graph_output()
        result = value if free else op.Identity(value)
        result.name = name
        if name in (LOSS, CORRECT):
            result.shape = ir.Shape([])
        graph.outputs.append(result)
    for entry in carried:
        output = outputs[f"{entry.old.name}/next"]
        output.type, output.shape = entry.old.type, entry.old.shape
