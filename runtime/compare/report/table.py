"""The table of a report: scores, differences from the baseline and cost of every model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.compare.result import Candidate, Comparison, ModelSummary, Scores
    from runtime.compare.statistics import Interval

NOT_AVAILABLE = "not available"
_HUGE = 1e6
Significance = Literal["", "gain", "loss", "noise"]


class Cell(NamedTuple):
    """One cell of the table."""

    value: str
    detail: str = ""
    """Shown under the value: the difference from the baseline, or the interval."""
    significance: Significance = ""
    """What the difference means; empty for values that have none."""


@dataclass(frozen=True)
class Row:
    """One metric."""

    label: str
    note: str
    """Its unit, or which direction is better."""
    cells: list[Cell]
    """The baseline's, then one for every candidate."""


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    heading: str
    rows: list[Row]


def short_names(paths: Sequence[str]) -> list[str]:
    """Shorten paths to their last part if these differ; otherwise keep the paths."""
    last = [Path(path).name for path in paths]
    return last if all(last) and len(set(last)) == len(last) else list(paths)


def groups(comparison: Comparison) -> list[Group]:
    """Build the table."""
    baseline, candidates = comparison.baseline, comparison.candidates
    count = comparison.metadata["count"]
    answers = [
        _score("Exact match", "more is better", baseline, candidates, "exact_match"),
        _score("Character error rate", "CER, less is better", baseline, candidates, "cer"),
        _score("ANLS", "more is better", baseline, candidates, "anls"),
        _row("Answers changed", f"of {count}", candidates, _answers_changed),
    ]
    predictions = [
        _row("KL divergence", "nats per token", candidates, lambda c: interval_cell(c.mean_kl, 5)),
        _row(
            "Token agreement",
            "same top prediction",
            candidates,
            lambda c: interval_cell(c.agreement, 4),
        ),
        Row(
            "Perplexity",
            "of the true answers",
            [Cell(format_perplexity(baseline.perplexity)), *(_perplexity(c) for c in candidates)],
        ),
    ]
    return [
        Group("Answers", answers),
        Group("Predictions along the true answers", predictions),
        Group("Cost", _cost_rows([baseline, *candidates])),
    ]


def _row(label: str, note: str, candidates: list[Candidate], cell: Callable[[Candidate], Cell]) -> Row:
    return Row(label, note, [Cell("–"), *(cell(candidate) for candidate in candidates)])


def _score(label: str, note: str, baseline: ModelSummary, candidates: list[Candidate], name: str) -> Row:
    cells = [_score_cell(baseline.scores, name)]
    for candidate in candidates:
        own = _score_cell(candidate.scores, name)
        if candidate.differences is None:
            cells.append(own._replace(detail="difference not available"))
        else:
            cells.append(difference_cell(own.value, candidate.differences[name], less_is_better=name == "cer"))
    return Row(label, note, cells)


def _score_cell(scores: Scores | None, name: str) -> Cell:
    return Cell(NOT_AVAILABLE if scores is None else f"{getattr(scores, name):.4f}")


def difference_cell(value: str, change: Interval, *, less_is_better: bool) -> Cell:
    """Show a value with its difference from the baseline, and whether that is significant."""
    significance: Significance = "noise"
    if not change.contains_zero:
        significance = "gain" if (change.value < 0) == less_is_better else "loss"
    return Cell(value, change.with_signs(4).replace("-", "−"), significance)


def interval_cell(interval: Interval, digits: int) -> Cell:
    """Show a value with its interval."""
    return Cell(f"{interval.value:.{digits}f}", f"{interval.low:.{digits}f} to {interval.high:.{digits}f}")


def _perplexity(candidate: Candidate) -> Cell:
    ratio = candidate.perplexity_ratio
    value, low, high = map(format_perplexity, ratio)
    return Cell(format_perplexity(candidate.perplexity), f"× {value} ({low} to {high})")


def format_perplexity(value: float) -> str:
    """Format a perplexity or a ratio of two: four decimals, or an exponent for huge values."""
    return f"{value:.4f}" if value < _HUGE else f"{value:.1e}"


def _answers_changed(candidate: Candidate) -> Cell:
    if candidate.answers_changed is None:
        return Cell(NOT_AVAILABLE)
    first = candidate.first_change
    return Cell(str(candidate.answers_changed), "" if first is None else f"from token {first + 1:.0f} on (median)")


def _cost_rows(models: list[ModelSummary]) -> list[Row]:
    costs = [model.cost for model in models]
    fields = (
        ("Weights", "MiB", "weights", 1),
        ("KV cache", "MiB, 4096 tokens", "kv_cache_at_4096", 1),
        ("Memory", "MiB added by loading; the first model includes the runtime", "resident", 1),
        ("Speed", "tokens per second, image included", "tokens_per_second", 0),
    )
    rows = []
    for label, note, name, digits in fields:
        values = [None if cost is None else getattr(cost, name) for cost in costs]
        rows.append(Row(label, note, [Cell(NOT_AVAILABLE if v is None else f"{v:.{digits}f}") for v in values]))
    return rows


def format_interval(interval: Interval, digits: int) -> str:
    """Format a value and its interval in one line."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f}–{interval.high:.{digits}f})"
