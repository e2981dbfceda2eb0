"""A comparison on the screen: one column a model, then what the numbers say, then the gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from runtime.evaluate import SCORES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from runtime.compare.result import Candidate, Comparison, Side
    from runtime.compare.statistics import Interval

NOT_AVAILABLE = "not available"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, the findings and the verdict."""
    sides: list[Side] = [comparison.baseline, *comparison.candidates]
    table = Table("", *short_names([side.model for side in sides]), title=f"{comparison.about['count']} documents")
    for name in SCORES:
        table.add_row(name, *(NOT_AVAILABLE if s.scores is None else f"{getattr(s.scores, name):.4f}" for s in sides))
    table.add_row("perplexity", *(f"{side.perplexity:.4f}" for side in sides))
    rows: dict[str, Callable[[Candidate], str]] = {
        "mean KL, nats": lambda c: _interval(c.mean_kl, 5),
        "agreement": lambda c: _interval(c.agreement, 4),
        "answers changed": lambda c: NOT_AVAILABLE if c.answers_changed is None else str(c.answers_changed),
    }
    for label, cell in rows.items():
        table.add_row(label, "", *(cell(candidate) for candidate in comparison.candidates))
    table.add_row("weights, MiB", *("" if side.cost is None else f"{side.cost.weights:.1f}" for side in sides))
    speeds = [side.cost and side.cost.tokens_per_second for side in sides]
    table.add_row("tokens/s", *("" if speed is None else f"{speed:.0f}" for speed in speeds))
    console.print(table)
    for candidate in comparison.candidates:
        _print_verdict(candidate, console)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of every path where that tells them apart, and the whole path elsewhere."""
    last = [Path(path).name for path in paths]
    return last if all(last) and len(set(last)) == len(last) else list(paths)


def _print_verdict(candidate: Candidate, console: Console) -> None:
    for finding in candidate.verdict.findings:
        console.print(f"{candidate.model}: {finding}", soft_wrap=True, highlight=False, markup=False)
    for check in candidate.verdict.checks:
        console.print(f"{candidate.model}: {check.line}", soft_wrap=True, highlight=False, markup=False)


def _interval(found: Interval, digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"
