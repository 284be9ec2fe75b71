#!/usr/bin/env python3
"""Look at an HTML report in a real browser: screenshots, and whether it keeps quiet and fits.

    pip install playwright pillow     # in an environment of its own
    screenshot_report.py report.html FOLDER [--browser /usr/bin/chromium] [--picture report.png]

Takes desktop, phone, dark and print. Fails where the page logs to the console, asks for anything but itself,
or is wider than its window. ``--picture`` writes the part that a README shows, in few colours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

VIEWS = {
    "desktop": (1280, "light"),
    "dark": (1280, "dark"),
    "tablet": (768, "light"),
    "phone": (375, "light"),
    "phone-dark": (375, "dark"),
}
PICTURE = {"width": 1120, "height": 900}


def main() -> int:
    """Take all pictures; gives 1 where there were problems."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    address = asked.report.resolve().as_uri()
    problems: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=asked.browser)
        for name, (width, scheme) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            watch(page, address, name, problems)
            page.goto(address)
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                problems.append(f"{name}: {wide} px wide in a window of {width}")
            page.screenshot(path=asked.folder / f"{name}.png", full_page=True)
            if name == "desktop":
                page.pdf(path=asked.folder / "print.pdf", format="A4", prefer_css_page_size=True)
            page.close()
        if asked.picture is not None:
            page = browser.new_page(viewport=PICTURE, device_scale_factor=2, color_scheme="light")
            page.goto(address)
            picture(page, asked.picture)
        browser.close()
    print("\n".join(problems) or "no console message, no request, nothing too wide")
    return 1 if problems else 0


def watch(page: Page, address: str, name: str, problems: list[str]) -> None:
    """Note whatever a report that is alone in the world does not do."""
    page.on("console", lambda message: problems.append(f"{name}: console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"{name}: error: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url in (address, "data:,") else problems.append(f"{name}: request: {request.url}")
        ),
    )


def picture(page: Page, path: Path) -> None:
    """The first source's name and its first four charts, without what is folded beneath them."""
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.remove())")
    section = page.locator("#source-1").bounding_box()
    charts = [chart.bounding_box() for chart in page.locator("#source-1 figure").all()[:4]]
    assert section is not None
    top = section["y"] + 1  # below the rule
    bottom = max(box["y"] + box["height"] for box in charts if box is not None) + 24
    clip = {"x": 0, "y": top, "width": PICTURE["width"], "height": bottom - top}
    page.screenshot(path=path, clip=clip, full_page=True)
    Image.open(path).convert("RGB").quantize(160, Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
