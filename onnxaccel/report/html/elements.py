"""HTML as elements: text stays text, since one function writes all markup and escapes what it writes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html import escape

from onnxaccel.report.figures import MISSING

Element = ET.Element
Child = Element | str | None
STYLE = "style"
"""The one element whose text is written as it is: our own style sheet."""
VOID = ("meta", "link")
"""Elements without an end."""


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """An element; ``class_`` is the attribute class, ``stroke_width`` stroke-width, None leaves one out."""
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            written = f"{value:.2f}" if isinstance(value, float) else _clean(value)
            element.set(key if key == "viewBox" else key.rstrip("_").replace("_", "-"), written)
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            if last is None:
                element.text = (element.text or "") + _clean(child)
            else:
                last.tail = (last.tail or "") + _clean(child)
        elif child is not None:
            element.append(child)
            last = child
    return element


def _clean(text: object) -> str:
    """Text without what no document may hold, or what turns the direction of writing."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, numbers: bool = True
) -> Element:
    """A table: its first column names the rows, the others are figures, or text; empty ones are left out."""
    figure = "n" if numbers else None
    kept = [n for n in range(len(columns)) if n == 0 or any(row[n] not in ("", MISSING) for row in rows)]
    columns, rows = [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]
    head = [tag("th", text, scope="col", class_=figure if n else None) for n, text in enumerate(columns)]
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", text, class_=figure) for text in row[1:]))
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex=0, role="group", aria_label=caption)


def page(title: str, style: str, *body: Child) -> str:
    """A whole document. Its policy forbids scripts and the network, whatever it may hold."""
    css = Element(STYLE)
    css.text = style
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        ),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),  # else a server is asked for one
        tag("title", title),
        css,
    )
    document = tag("html", head, tag("body", tag("main", *body)), lang="en")
    return f"<!doctype html>\n{''.join(_written(document))}\n"


def _written(element: Element) -> Iterator[str]:
    """The markup. xml.etree's own for HTML leaves < in attributes, which is legal but invites mistakes."""
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.items())
    yield f"<{element.tag}{attributes}>"
    if element.tag not in VOID:
        text = element.text or ""
        yield text if element.tag == STYLE else escape(text, quote=False)
        for child in element:
            yield from _written(child)
            yield escape(child.tail or "", quote=False)
        yield f"</{element.tag}>"
