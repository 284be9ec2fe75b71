"""TensorFlow graphs are programs: operators that touch files, networks or Python are not run.

A frozen graph and a SavedModel run when they are compared, a SavedModel's initializers when it is loaded, and
grappler evaluates what depends on constants alone. So graphs are searched before TensorFlow gets them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxaccel.errors import ConversionError

_HARMFUL = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|ImmutableConst|FileSystem|DumpTensor|ImportEvent|LoadAndRemap|Vocab"
    r"|Reader|^Write|Summary\w*Writer|^Debug|PyFunc|Rpc|Remote|Collective|Nccl|^_?(Send|Recv)$|TPU|TRTEngine"
    r"|(CSV|Cache\w*|Generator|List|LMDB|Load|Record|Save|Snapshot\w*|Sql|TextLine|DataService)Dataset"
    r"|SnapshotChunks|DatasetToTFRecord|(De|En)codeProto|XlaCustomCall|XlaHostCompute|StatisticsSaver|^Sleep"
)
"""Operators that read or write files, talk to other machines, run Python or foreign code, or wait."""

_SAVING = re.compile(r"Save|SaveV2|SaveSlices|MergeV2Checkpoints|DistributedSave|DTensorRestoreV2")
_RESTORING = re.compile(r"Restore|RestoreSlice|RestoreV2")


def refuse_harm(
    graph_def: Any,
    path: Path,
    ends: Iterable[str] | None = None,
    starts: Iterable[str] = (),
    *,
    restoring: bool = False,
) -> None:
    """Refuse a graph that would do more than compute.

    Args:
        graph_def: The graph.
        path: Where it comes from, for messages.
        ends: Tensors or operators that will be run; None: all of it may be.
        starts: Tensors that are fed: what is behind them does not run.
        restoring: Whether it may read checkpoints.

    Raises:
        ConversionError: It has an operator that touches more than tensors.
    """
    for node in _nodes(graph_def) if ends is None else _running(graph_def, ends, starts):
        stream = node.attr["output_stream"].s if node.op == "PrintV2" else b""
        harmful = _HARMFUL.search(node.op) or _SAVING.fullmatch(node.op) or stream.startswith(b"file")
        if harmful or (not restoring and _RESTORING.fullmatch(node.op)):
            raise ConversionError(
                f"{path}: refused, operator {node.op} (node {node.name!r}) touches more than tensors: files, "
                f"the network or Python; cut the graph behind it with --inputs {node.name}:0"
            )


def without_saving(graph_def: Any) -> None:
    """Make the operators that write checkpoints do nothing, in place; a model is loaded without them."""
    for node in _nodes(graph_def):
        if _SAVING.fullmatch(node.op):
            node.op = "NoOp"
            node.ClearField("input")
            node.ClearField("attr")


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _running(graph_def: Any, ends: Iterable[str], starts: Iterable[str]) -> Iterator[Any]:
    """The nodes that run when ``ends`` are computed, those of functions that they call among them."""
    nodes = {node.name: node for node in graph_def.node}
    functions = {function.signature.name: function for function in graph_def.library.function}
    seen, called = {_node(name) for name in starts}, set[str]()
    pending = [_node(name) for name in ends]
    while pending:
        name = pending.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        pending += map(_node, nodes[name].input)
        inner = [nodes[name]]
        while inner:
            node = inner.pop()
            yield node
            for function in _calls(node) & functions.keys() - called:
                called.add(function)
                inner += functions[function].node_def


def _calls(node: Any) -> set[str]:
    """Names of functions that a node may call: its operator's own, and those among its attributes."""
    values = list(node.attr.values())
    return {node.op, *(v.func.name for v in values), *(f.name for v in values for f in v.list.func)}


def _node(tensor: str) -> str:
    return tensor.split(":")[0].lstrip("^")
