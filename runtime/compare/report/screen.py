"""Prints a comparison: a table with one row per model, then findings and gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from runtime.compare.report.stopping import TITLE, missing, stopping_lines
from runtime.compare.report.table import format_interval, format_perplexity, short_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from runtime.compare.result import Candidate, Comparison, ModelSummary

_COLUMNS = ("exact", "CER", "ANLS", "perpl.", "KL", "agree", "changed", "MiB", "tok/s")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, the findings and the verdict."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{comparison.metadata['count']} documents",
    )
    table.add_column("", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    baseline, candidates = comparison.baseline, comparison.candidates
    baseline_name, *names = short_names([baseline.model, *(candidate.model for candidate in candidates)])
    table.add_row(baseline_name, *_scores(baseline), "", "", "", *_cost(baseline))
    for name, candidate in zip(names, candidates, strict=True):
        changed = "–" if candidate.answers_changed is None else str(candidate.answers_changed)
        against_baseline = (f"{candidate.mean_kl.value:.5f}", f"{candidate.agreement.value:.4f}", changed)
        table.add_row(name, *_scores(candidate), *against_baseline, *_cost(candidate))
    console.print(table)
    console.print()
    for candidate in candidates:
        _print_lines(candidate.model, _verdict(candidate), console)
    console.print(f"\n{TITLE}")
    for candidate in candidates:
        _print_lines(candidate.model, stopping_lines(candidate), console)
    _print_lines("", missing(comparison), console)


def _scores(model: ModelSummary) -> tuple[str, ...]:
    scores = model.scores
    if scores is None:
        return "–", "–", "–", format_perplexity(model.perplexity)
    return f"{scores.exact_match:.3f}", f"{scores.cer:.4f}", f"{scores.anls:.3f}", format_perplexity(model.perplexity)


def _cost(model: ModelSummary) -> tuple[str, str]:
    if model.cost is None:
        return "–", "–"
    speed = model.cost.tokens_per_second
    return f"{model.cost.weights:.1f}", "–" if speed is None else f"{speed:.0f}"


def _verdict(candidate: Candidate) -> list[str]:
    kl, agreement = format_interval(candidate.mean_kl, 5), format_interval(candidate.agreement, 4)
    lines = [f"mean KL {kl} nats per token, agreement {agreement}", *candidate.verdict.findings]
    return lines + [check.line for check in candidate.verdict.checks]


def _print_lines(model: str, lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(f"{model}: {line}" if model else line, soft_wrap=True, highlight=False, markup=False)
