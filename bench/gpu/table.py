"""Figures as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.gpu.figures import Figure

_CELLS = ("", "median", "quartiles", "times", "share of the ceiling", "")


def stage_lines(
    title: str, seconds: float, error: str | None, timed_out: bool, figures: Sequence[Figure]
) -> Iterator[str]:
    """The heading of a stage, how it ended, and its table."""
    yield f"## {title}"
    yield ""
    failed = "" if error is None else f" It failed: {error}"
    yield f"{seconds:.0f} s.{' Its time ran out.' if timed_out else ''}{failed}"
    if figures:
        yield ""
        yield "| " + " | ".join(_CELLS) + " |"
        yield "|---|---:|---:|---:|---:|---|"
        yield from map(_row, figures)
    yield ""


def _row(figure: Figure) -> str:
    if isinstance(figure.value, str):
        return f"| {figure.name} | {figure.value} | | | | {figure.note} |"
    value = f"{_number(figure.value)} {figure.unit}".strip()
    spread = "" if figure.low is None or figure.high is None else f"{_number(figure.low)}–{_number(figure.high)}"
    share = "" if figure.share is None else f"{figure.share:.0%}"
    return f"| {figure.name} | {value} | {spread} | {figure.count} | {share} | {figure.note} |"


def _number(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 on."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"
