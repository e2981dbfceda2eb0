"""Fills a page's template, which extends base.html.jinja and whose page.css comes after base.css."""

from __future__ import annotations

from pathlib import Path

import jinja2


def render_page(folder: Path, **values: object) -> str:
    """Fill page.html.jinja of a folder. All values are escaped; the same ones give the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(values)


def write_page(text: str, path: Path) -> None:
    """Write a page. Names of files in it need not be UTF-8."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
