"""A comparison on the screen: one row a model, then what the numbers say, then the gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from runtime.compare.report.table import plain, short_names

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.compare.result import Candidate, Comparison, Side
    from runtime.compare.statistics import Interval

_COLUMNS = ("exact", "CER", "ANLS", "perpl.", "KL", "agree", "changed", "MiB", "tok/s")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, the findings and the verdict."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{comparison.about['count']} documents",
    )
    table.add_column("", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    baseline, candidates = comparison.baseline, comparison.candidates
    baseline_name, *names = short_names([baseline.model, *(one.model for one in candidates)])
    table.add_row(baseline_name, *_side(baseline), "", "", "", *_cost(baseline))
    for name, candidate in zip(names, candidates, strict=True):
        changed = "–" if candidate.answers_changed is None else str(candidate.answers_changed)
        apart = (f"{candidate.mean_kl.value:.5f}", f"{candidate.agreement.value:.4f}", changed)
        table.add_row(name, *_side(candidate), *apart, *_cost(candidate))
    console.print(table)
    console.print()
    for candidate in candidates:
        _print_verdict(candidate, console)


def _side(side: Side) -> tuple[str, ...]:
    scores = side.scores
    if scores is None:
        return "–", "–", "–", plain(side.perplexity)
    return f"{scores.exact_match:.3f}", f"{scores.cer:.4f}", f"{scores.anls:.3f}", plain(side.perplexity)


def _cost(side: Side) -> tuple[str, str]:
    if side.cost is None:
        return "–", "–"
    speed = side.cost.tokens_per_second
    return f"{side.cost.weights:.1f}", "–" if speed is None else f"{speed:.0f}"


def _print_verdict(candidate: Candidate, console: Console) -> None:
    kl, agreement = _interval(candidate.mean_kl, 5), _interval(candidate.agreement, 4)
    lines = [f"mean KL {kl} nats a token, agreement {agreement}", *candidate.verdict.findings]
    lines += [check.line for check in candidate.verdict.checks]
    for line in lines:
        console.print(f"{candidate.model}: {line}", soft_wrap=True, highlight=False, markup=False)


def _interval(found: Interval, digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"
