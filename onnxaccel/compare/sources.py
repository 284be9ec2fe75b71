"""From what the user names to models that can be compared: exported, converted, and described.

A source is ``models:NAME`` (a reference model, in every framework that has it), an ONNX file, or the files of
one model as `onnxaccel.converters.convert` takes them, joined by commas: ``deploy.prototxt,net.caffemodel``.
Each conversion runs in a process of its own: what crashes or hangs there is a reason, and the frameworks that
it loads are gone when the measuring starts.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.compare.results import Source
from onnxaccel.data import Source as Data
from onnxaccel.data import as_dataset, label_kind
from onnxaccel.errors import AccelError
from onnxaccel.runtime.measure import ENVIRONMENT, Failed, Job, Limits, once, reason

REFERENCE = "models:"
"""How the name of a reference model begins."""

_SECONDS = 900.0
"""Time that a conversion may take; its memory is that of a candidate by default, or more where that may."""

_PROBED = {"tensorflow": "tensorflow", "pytorch": "torch"}
"""The package that says whether a framework is here."""


@dataclass(frozen=True)
class Asked:
    """How to open sources.

    Attributes:
        factory: "module:callable" that builds the torch module a state dict belongs to.
        shapes: Shape by input name, see `onnxaccel.converters.convert`.
        inputs: Tensors to cut a TensorFlow graph at; empty: inferred.
        outputs: Tensors to end it at; empty: inferred.
        trust_pickle: Allow files that run code when they are loaded.
        preprocessing: How data becomes the input: "mean", "scale", "layout", see
            `onnxaccel.graph.model.Preprocessing`; what is left out is as the model's metadata say.
        data: Data that reference models are fitted to: their input's shape and number of classes.
        train: Also convert in trainable form.
        seed: Seed of the reference models' weights.
        pythons: The Python of a framework that lives in another environment, by the framework's name.
        limits: Memory that a conversion may take.
    """

    factory: str | None = None
    shapes: Mapping[str, Sequence[int | str]] | None = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    trust_pickle: bool = False
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    data: Data | None = None
    train: bool = False
    seed: int = 0
    pythons: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Opened:
    """One model in one framework.

    Attributes:
        name: The source's name.
        framework: "tensorflow", "pytorch", "caffe" or "onnx".
        format: A key of `onnxaccel.converters.detect.FRAMEWORK`, or "onnx".
        files: Its files; of a reference model those that `onnxaccel.models.export` wrote.
        onnx: The converted model in inference form.
        inputs: Names of its inputs, in order.
        dtypes: Their element types, by numpy's names.
        outputs: Names of its outputs, in order.
        trainable: The converted model in trainable form, or None.
        not_trainable: Why there is no trainable form although it was asked for, or None.
        asked: How it was opened.
        reference: Name of the reference model that it is, or None.
        input_shape: Shape of one sample of the first input, channels first where it is an image.
        planar: Whether its images have their channels first.
        batch: The batch size that it is fixed to, or None.
        classes: Number of classes of a reference model, or None.
        parameters: Number of weights.
        probabilities: Whether its first output is that of a softmax.
        writers: Of a Caffe network, the layer that writes each output.
        export: The command that writes the files of a reference model, or None.
        convert: The command that converts it, or None: it is ONNX already.
        target: The file that the command writes.
    """

    name: str
    framework: str
    format: str
    files: tuple[str, ...]
    onnx: Path
    inputs: tuple[str, ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    trainable: Path | None
    not_trainable: str | None
    asked: Asked
    reference: str | None
    input_shape: tuple[int, ...]
    planar: bool
    batch: int | None
    classes: int | None
    parameters: int
    probabilities: bool
    writers: tuple[str, ...]
    export: str | None
    convert: str | None
    target: str

    @property
    def size(self) -> int:
        """Bytes of what inference needs of its own files."""
        paths = [Path(file) for file in self.files if not file.endswith(".pth") or len(self.files) == 1]
        files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
        return sum(file.stat().st_size for file in files if file.is_file())


def open_source(
    name: str, asked: Asked, folder: Path, progress: Any = lambda line: None
) -> tuple[Source, list[Opened], dict[str, str]]:
    """Open one source; nothing that is wrong with it is raised.

    Args:
        name: What the user named.
        asked: How to open it.
        folder: An empty folder for what is exported and converted; it must outlive the result.
        progress: Called with one line per stage.

    Returns:
        The source's entry in the result, with ``failure`` filled in if it could not be opened at all; the
        model in each framework that has it; and for each framework in which it failed the reason.
    """
    source, opened, failures = Source(name), [], {}
    try:
        setups = reference_jobs(name, asked) if name.startswith(REFERENCE) else [_files(name, asked)]
    except AccelError as error:
        source.failure = str(error)
        return source, [], {}
    source.framework = setups[0]["framework"] if len(setups) == 1 else None
    for setup in setups:
        framework = setup["framework"]
        progress(f"{name}: {framework} is converted")
        try:
            opened.append(_opened(name, asked, setup, folder / framework))
        except Failed as error:
            failures[framework] = reason(str(error))
            progress(f"{name}: {framework}: {failures[framework]}")
    if not opened:
        source.failure = "; ".join(dict.fromkeys(failures.values()))
        return source, [], failures
    first = opened[0]
    source.parameters = max(one.parameters for one in opened)
    source.input_shape = list(first.input_shape)
    return source, opened, failures


def reference_jobs(name: str, asked: Asked) -> list[dict[str, Any]]:
    """The jobs that build a reference model, one per framework, fitted to the data."""
    from onnxaccel import models

    reference = name.removeprefix(REFERENCE)
    inputs, classes = models.inputs(reference), 10
    shape = inputs.shape
    if asked.data is not None:
        shape, classes = _fitted(shape, inputs.kind == "image", asked.data)
    return [
        {"framework": framework, "reference": reference, "shape": list(shape), "classes": classes}
        for framework in ("pytorch", "tensorflow", "caffe")
        if framework in models.frameworks(reference)
    ]


def _fitted(shape: tuple[int, ...], image: bool, data: Data) -> tuple[tuple[int, ...], int]:
    """The shape of a sample and the number of classes that ``data`` has; images are resized to ``shape``."""
    dataset = as_dataset(data)
    size = (shape[1], shape[2]) if image else None
    sample = dataset.take(np.zeros(1, np.int64), size)[0].shape[1:]
    if not image:
        shape = (math.prod(sample),)
    elif len(sample) == 3:
        shape = (sample[2], *sample[:2]) if sample[2] in (1, 3) else sample
    if label_kind(data) != "cross_entropy":
        return shape, 10
    if dataset.classes is not None:
        return shape, max(2, len(dataset.classes))
    labels = dataset.take(np.arange(min(len(dataset), 10_000)), size)[1]
    return shape, max(2, int(labels.max()) + 1)


def _files(name: str, asked: Asked) -> dict[str, Any]:
    """The job that converts a model's files."""
    from onnxaccel.converters.detect import detect

    paths = [Path(part) for part in name.split(",")] if not Path(name).exists() else [Path(name)]
    if len(paths) == 1 and _is_onnx(paths[0]):
        return {"framework": "onnx", "format": "onnx", "files": [str(paths[0])]}
    found = detect(paths)
    return {"framework": found.framework, "format": found.format, "files": [str(p) for p in found.paths]}


def _is_onnx(path: Path) -> bool:
    """Whether a file opens like an ONNX model, its first field the IR version, or is an encrypted one."""
    from onnxaccel.converters.wire import first_fields
    from onnxaccel.protect.container import is_sealed

    if not path.is_file() or is_sealed(path):
        return path.is_file()
    with path.open("rb") as file:
        fields = first_fields(file.read(4096))
    return bool(fields) and fields[0][:2] == (1, 0)


def _opened(name: str, asked: Asked, setup: Mapping[str, Any], folder: Path) -> Opened:
    framework = setup["framework"]
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "factory": asked.factory if setup.get("format") in ("state-dict", "safetensors") else None,
        "shapes": {key: list(dims) for key, dims in (asked.shapes or {}).items()} or None,
        "inputs": list(asked.inputs),
        "outputs": list(asked.outputs),
        "trust_pickle": asked.trust_pickle,
    }
    job = Job(
        "onnxaccel.compare.conversion:run",
        {
            **setup,
            "options": options,
            "preprocessing": dict(asked.preprocessing),
            "folder": str(folder),
            "train": asked.train,
            "seed": asked.seed,
        },
        python=_python(framework, asked.pythons),
        environment=ENVIRONMENT,
    )
    facts = once(job, Limits(_SECONDS, max(asked.limits.memory, Limits().memory)))
    return Opened(
        name=name,
        framework=framework,
        format=facts["format"],
        files=tuple(facts["files"]),
        onnx=Path(facts["onnx"]),
        inputs=tuple(facts["inputs"]),
        dtypes=tuple(facts["dtypes"]),
        outputs=tuple(facts["outputs"]),
        trainable=Path(facts["trainable"]) if facts["trainable"] else None,
        not_trainable=facts["not_trainable"],
        asked=asked,
        reference=setup.get("reference"),
        input_shape=tuple(facts["input_shape"]),
        planar=facts["planar"],
        batch=facts["batch"],
        classes=setup.get("classes"),
        parameters=facts["parameters"],
        probabilities=facts["probabilities"],
        writers=tuple(facts["writers"]),
        export=_export(setup, asked) if "reference" in setup else None,
        convert=_command(setup, asked, facts["files"]),
        target=_target(setup),
    )


def _python(framework: str, pythons: Mapping[str, str]) -> str:
    """The Python to convert in: this one, where it has the framework."""
    package = _PROBED.get(framework)
    if package is None or framework not in pythons or importlib.util.find_spec(package) is not None:
        return sys.executable
    return pythons[framework]


def _target(setup: Mapping[str, Any]) -> str:
    """What the converted model is called."""
    if "reference" in setup:
        return f"{setup['reference']}.onnx"
    path = Path(setup["files"][0])
    return str(path) if setup["framework"] == "onnx" else f"{path.stem}.onnx"


def _export(setup: Mapping[str, Any], asked: Asked) -> str:
    """The command that writes a reference model's files."""
    name, shape = setup["reference"], ",".join(map(str, setup["shape"]))
    return (
        f"onnxaccel models export {name} --framework {setup['framework']} --input-shape {shape} "
        f"--classes {setup['classes']} --seed {asked.seed} -o {name}"
    )


def _command(setup: Mapping[str, Any], asked: Asked, files: Sequence[str]) -> str | None:
    """The command that converts a source; with `` --trainable`` behind it in trainable form."""
    if setup["framework"] == "onnx":
        return None
    target = _target(setup)
    if "reference" in setup:
        name = setup["reference"]
        count = 2 if setup["framework"] == "caffe" else 1
        graph = " ".join(f"{name}/{Path(file).name}" for file in files[:count])
        return f"{_export(setup, asked)} && onnxaccel convert {graph} -o {target}"
    words = ["onnxaccel convert", *map(shlex.quote, setup["files"]), f"-o {shlex.quote(target)}"]
    if asked.factory and setup["format"] in ("state-dict", "safetensors"):
        words.append(f"--factory {shlex.quote(asked.factory)}")
    for option, cut in (("inputs", asked.inputs), ("outputs", asked.outputs)):
        words += [f"--{option} {','.join(cut)}"] if cut else []
    words += [f"--shape {key}={','.join(map(str, dims))}" for key, dims in (asked.shapes or {}).items()]
    return " ".join(words + ["--trust-pickle"] * asked.trust_pickle)
