"""The page of one comparison: the answers, then each source's charts, then how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from onnxaccel.compare.results import Comparison, Machine, Recommendation, Source
from onnxaccel.report import figures
from onnxaccel.report.comparison import settings_line
from onnxaccel.report.figures import legible, times
from onnxaccel.report.html.charts import figure_group
from onnxaccel.report.html.elements import Child, Element, page, table, tag
from onnxaccel.report.html.inference import inference_figures
from onnxaccel.report.html.sides import sides_of
from onnxaccel.report.html.training import training_figures

GOALS = {
    "latency": "Lowest latency",
    "throughput": "Highest throughput",
    "memory": "Least memory",
    "training": "Fastest training",
}
"""What a goal asks for, in words."""


def style() -> str:
    """The style sheet of every page."""
    return Path(__file__).with_name("style.css").read_text()


def render(comparison: Comparison) -> str:
    """The HTML document of a comparison."""
    names = [legible(source.name, 60) for source in comparison.sources]
    title = f"{_listed(names)}: which way to run it?" if len(names) == 1 else f"{_listed(names)} compared"
    sources = [_source(source, f"source-{n}") for n, source in enumerate(comparison.sources, start=1)]
    return page(
        title,
        style(),
        tag(
            "header",
            tag("p", "onnxaccel comparison", class_="kicker"),
            tag("h1", _listed(names)),
            tag("p", f"{machine_line(comparison.machine)}; {when(comparison.created)}", class_="lead"),
            _contents(names),
        ),
        _answers(comparison.sources),
        notes(comparison.warnings),
        *sources,
        _method(comparison),
    )


def machine_line(machine: Machine) -> str:
    """A machine in one line."""
    return figures.machine_line(machine.name, machine.cores, machine.memory, machine.gpus)


def when(created: str) -> str:
    """A time stamp as people write it; whatever else it is stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return legible(created, 40)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def notes(warnings: Sequence[str]) -> Element | None:
    """What to keep in mind, or nothing."""
    if not warnings:
        return None
    items = [tag("li", legible(warning)) for warning in warnings]
    return tag("aside", tag("h2", "Keep in mind"), tag("ul", *items), class_="notes")


def versions(machine: Machine) -> list[tuple[str, str]]:
    """System and versions of a machine, as rows of a table."""
    return [
        ("system", legible(machine.system)),
        *((legible(k), legible(v)) for k, v in machine.versions.items()),
    ]


def _listed(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "No source"


def _contents(names: Sequence[str]) -> Element | None:
    if len(names) < 2:
        return None
    links = [
        tag("li", tag("a", name, href=f"#source-{number}")) for number, name in enumerate(names, start=1)
    ]
    return tag(
        "nav",
        tag("ul", *links, tag("li", tag("a", "How it was measured", href="#method"))),
        aria_label="Contents",
    )


def _answers(sources: Sequence[Source]) -> Element:
    parts: list[Child] = [tag("h2", "In short")]
    for source in sources:
        if len(sources) > 1:
            parts.append(tag("h3", legible(source.name, 60)))
        if source.recommendations:
            answers = [_answer(source, answer) for answer in source.recommendations]
            parts.append(tag("ul", *answers, class_="answers"))
        else:
            reason = (
                f"Not compared: {legible(source.failure)}"
                if source.failure
                else "The figures answer no goal."
            )
            parts.append(tag("p", reason, class_="none"))
    return tag("section", *parts, class_="short")


def _answer(source: Source, answer: Recommendation) -> Element:
    gains = answer.ratio is not None and answer.ratio > 1
    ratio = times(answer.ratio, "×") if gains else "stay" if source.framework else "native"
    goal = GOALS.get(answer.goal, legible(answer.goal, 30))
    command = tag("pre", tag("code", legible(answer.command))) if answer.command else None
    return tag(
        "li",
        tag("p", goal, class_="goal"),
        tag("p", ratio, class_="ratio" if gains else "ratio stay"),
        tag("div", tag("p", legible(answer.sentence)), command),
    )


def _source(source: Source, anchor: str) -> Element:
    parts: list[Child] = [
        tag("h2", legible(source.name, 60)),
        tag("p", figures.facts_line(source), class_="lead"),
    ]
    if source.failure is not None:
        parts.append(tag("p", f"Not compared: {legible(source.failure)}", class_="none"))
    sides = sides_of(source.candidates)
    parts += figure_group("Inference", inference_figures(source, sides))
    parts += figure_group("Training", training_figures(source, sides))
    failed = figures.failures(source)
    if failed:
        shown = table(
            ("candidate", "part", "reason"), failed, f"{source.name}: without figures", numbers=False
        )
        parts += [tag("h3", "Without figures"), shown]
    commands = [(side.name, legible(side.candidate.command)) for side in sides if side.candidate.command]
    if commands:
        listed = table(("candidate", "command"), commands, f"{source.name}: commands", numbers=False)
        parts.append(tag("details", tag("summary", "The command behind each candidate"), listed))
    return tag("section", *parts, id=anchor)


def _method(comparison: Comparison) -> Element:
    machine = comparison.machine
    return tag(
        "section",
        tag("h2", "How it was measured"),
        tag("p", f"{settings_line(comparison.settings)}.", class_="lead"),
        tag(
            "p",
            "Each candidate ran in a process of its own, one at a time, in turns, with quiet between the "
            "turns; figures are medians over all of its turns. Ratios are held against the best candidate of "
            "the source's own framework, or, for a reference model, of TensorFlow, PyTorch and Caffe.",
        ),
        tag("h3", "Machine and versions"),
        tag("p", f"{machine_line(machine)}."),
        table(("package", "version"), versions(machine), "Versions", numbers=False),
        tag("p", f"{legible(comparison.schema, 40)}, made {when(comparison.created)}.", class_="unit"),
        id="method",
    )
