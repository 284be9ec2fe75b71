"""What a comparison finds, and the JSON document that holds it.

The document is `Comparison` with every dataclass as an object, under the same names; absent figures are null.
Its ``schema`` names the version: a reader refuses a document of another major version. Times are in seconds
unless a name says otherwise, sizes in bytes, rates per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEMA = "onnxaccel.comparison/1"
"""Version of the document: grows when a field changes its meaning or goes; new fields leave it as it is."""

GOALS = ("latency", "throughput", "memory", "training")
"""What a user may want most."""


@dataclass
class Machine:
    """Where a comparison ran.

    Attributes:
        name: The processor's name.
        cores: Processors that the process may use.
        memory: Bytes of main memory.
        gpus: Names of the GPUs, empty where there is none.
        system: Operating system and its version.
        versions: Version of Python and of each package that took part, by name.
    """

    name: str
    cores: int
    memory: int
    gpus: list[str]
    system: str
    versions: dict[str, str]


@dataclass
class Settings:
    """What was the same for every candidate.

    Attributes:
        threads: Threads of each candidate.
        precision: Type of the numbers, where a candidate's name says nothing else: "fp32".
        batch_sizes: Batch sizes of the inference.
        data: The data's SPEC, or None: random inputs.
        rounds: Turns of each candidate.
        seconds: Seconds of a turn.
        seed: Seed of weights, order of the data, and random inputs.
        training: What all sides train with ("optimizer", "lr", "batch_size", "epochs", "loss", ...), or None.
    """

    threads: int
    precision: str
    batch_sizes: list[int]
    data: str | None
    rounds: int
    seconds: float
    seed: int
    training: dict[str, float | int | str | bool] | None = None


@dataclass
class Batch:
    """Inference at one batch size.

    Attributes:
        size: Samples per run.
        p50: Half of the runs took no longer, in milliseconds; p90 and p99 likewise.
        p90: See above.
        p99: See above.
        throughput: Samples per second, the median of the rounds.
        rounds: Samples per second of each round.
        disturbed: Rounds in which other programs kept the machine busy.
        failure: Why there are no figures, or None.
    """

    size: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    throughput: float | None = None
    rounds: list[float] = field(default_factory=list)
    disturbed: int = 0
    failure: str | None = None


@dataclass
class Inference:
    """What a candidate does with a trained model.

    Attributes:
        batches: By batch size, in ascending order.
        memory: Bytes that loading and running it added to its process at their peak.
        gpu_memory: The same on the GPU, or None.
        startup: Seconds from the process's start until the model is loaded.
        first_run: Seconds of the first run (a compiler works then).
        size: Bytes of the model's files.
        relative_error: Largest difference to the source's outputs, relative to their largest value.
        accuracy: Share of right answers on the data, or None without labels.
        failure: Why there are no figures, or None.
    """

    batches: list[Batch] = field(default_factory=list)
    memory: int | None = None
    gpu_memory: int | None = None
    startup: float | None = None
    first_run: float | None = None
    size: int | None = None
    relative_error: float | None = None
    accuracy: float | None = None
    failure: str | None = None


@dataclass
class Training:
    """How a candidate trains, from the same weights on the same batches as all others.

    Attributes:
        losses: Loss of each step.
        difference: Largest difference of ``losses`` to those of the reference side, absolute.
        steps_per_second: Median of the rounds.
        rounds: Steps per second of each round.
        disturbed: Rounds in which other programs kept the machine busy.
        seconds_to_loss: Seconds of training until the mean loss of an epoch was first at or below
            `Source.target_loss`, or None: never. Reckoned from the step count and ``steps_per_second``.
        accuracy: Share of right answers on the validation data at the end, or None.
        memory: Bytes that training added to its process at their peak.
        gpu_memory: The same on the GPU, or None.
        startup: Seconds until the first step can run.
        first_step: Seconds of the first step.
        command: What to run to train so with onnxaccel, or None.
        failure: Why there are no figures, or None.
    """

    losses: list[float] = field(default_factory=list)
    difference: float | None = None
    steps_per_second: float | None = None
    rounds: list[float] = field(default_factory=list)
    disturbed: int = 0
    seconds_to_loss: float | None = None
    accuracy: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None
    startup: float | None = None
    first_step: float | None = None
    command: str | None = None
    failure: str | None = None


@dataclass
class Candidate:
    """One way to run a source.

    Attributes:
        name: What the tables call it: "PyTorch eager", "onnxaccel cpu", "onnxaccel cpu, int8 static".
        framework: "tensorflow", "pytorch", "caffe", "opencv" or "onnxaccel".
        mode: How the framework runs it: "eager", "compile", "function", "xla", ...; a provider's name for
            onnxaccel.
        precision: Type of the numbers.
        command: What to run to get it, where there is such a command.
        inference: Its inference, or None: not asked for.
        training: Its training, or None: not asked for.
    """

    name: str
    framework: str
    mode: str
    precision: str = "fp32"
    command: str | None = None
    inference: Inference | None = None
    training: Training | None = None

    @property
    def failed(self) -> bool:
        """Whether nothing that was asked of it gave figures."""
        parts = [part for part in (self.inference, self.training) if part is not None]
        return all(part.failure is not None for part in parts)


@dataclass
class Recommendation:
    """The answer for one goal.

    Attributes:
        goal: One of `GOALS`.
        winner: The candidate's name.
        sentence: What to do, why, and at what price.
        ratio: How many times as good as the best of the source's own framework, or None: no such figure.
        command: What to run next, or None: stay where you are.
    """

    goal: str
    winner: str
    sentence: str
    ratio: float | None = None
    command: str | None = None


@dataclass
class Source:
    """One model and all ways to run it.

    Attributes:
        name: As it was given: "models:mlp", "model.pt2".
        framework: Its own framework; None for a reference model, which all of them have.
        parameters: Number of weights, or None.
        input_shape: Shape of one sample, channels first where it is an image.
        candidates: All ways to run it, those that failed among them.
        target_loss: Loss that the training's times are held against: the highest of the sides' last mean
            losses of an epoch, so that every side reaches it. None without training.
        recommendations: One per goal that the figures answer.
        failure: Why it could not be compared at all, or None.
    """

    name: str
    framework: str | None = None
    parameters: int | None = None
    input_shape: list[int] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    target_loss: float | None = None
    recommendations: list[Recommendation] = field(default_factory=list)
    failure: str | None = None

    @property
    def answered(self) -> bool:
        """Whether at least one candidate ran."""
        return self.failure is None and any(not candidate.failed for candidate in self.candidates)


@dataclass
class Comparison:
    """The result of `onnxaccel.compare`.

    Attributes:
        created: When it was made, ISO 8601 in UTC.
        machine: Where it ran.
        settings: What was the same for all.
        sources: The models, in the order in which they were given.
        warnings: What to keep in mind about these figures.
        schema: Version of this document.
    """

    created: str
    machine: Machine
    settings: Settings
    sources: list[Source]
    warnings: list[str] = field(default_factory=list)
    schema: str = SCHEMA
