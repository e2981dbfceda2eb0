"""The rows of a table: what each model scores, how far it is from the baseline, what it takes; and its name in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.compare.result import Candidate, Comparison, Scores, Side
    from runtime.compare.statistics import Interval

NOT_AVAILABLE = "not available"
_HUGE = 1e6
Tone = Literal["", "gain", "loss", "noise"]


class Cell(NamedTuple):
    """A value, and under it how it differs. tone: what that says, where it says something."""

    value: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Row:
    """One measure. note: its unit, or which way is better. cells: of the baseline, then of every candidate."""

    label: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    heading: str
    rows: list[Row]


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of every path where that tells them apart, and the whole path elsewhere."""
    last = [Path(path).name for path in paths]
    return last if all(last) and len(set(last)) == len(last) else list(paths)


def groups(comparison: Comparison) -> list[Group]:
    """The whole table."""
    baseline, candidates = comparison.baseline, comparison.candidates
    count = comparison.about["count"]
    answers = [
        _score("Exact match", "more is better", baseline, candidates, "exact_match"),
        _score("Character error rate", "CER, less is better", baseline, candidates, "cer"),
        _score("ANLS", "more is better", baseline, candidates, "anls"),
        _row("Answers changed", f"of {count}", candidates, _changed),
    ]
    predictions = [
        _row("KL from the baseline", "nats a token", candidates, lambda c: _spread(c.mean_kl, 5)),
        _row("Agreement", "tokens that both find likeliest", candidates, lambda c: _spread(c.agreement, 4)),
        Row(
            "Perplexity",
            "of the true answers",
            [Cell(plain(baseline.perplexity)), *(_perplexity(c) for c in candidates)],
        ),
    ]
    return [
        Group("Answers", answers),
        Group("Predictions along the true answers", predictions),
        Group("Cost", _cost([baseline, *candidates])),
    ]


def _row(label: str, note: str, candidates: list[Candidate], cell: Callable[[Candidate], Cell]) -> Row:
    return Row(label, note, [Cell("–"), *(cell(candidate) for candidate in candidates)])


def _score(label: str, note: str, baseline: Side, candidates: list[Candidate], name: str) -> Row:
    cells = [_own(baseline.scores, name)]
    for candidate in candidates:
        own = _own(candidate.scores, name)
        if candidate.differences is None:
            cells.append(own._replace(detail="difference not available"))
        else:
            cells.append(_difference(own.value, candidate.differences[name], less_is_better=name == "cer"))
    return Row(label, note, cells)


def _own(scores: Scores | None, name: str) -> Cell:
    return Cell(NOT_AVAILABLE if scores is None else f"{getattr(scores, name):.4f}")


def _difference(value: str, found: Interval, *, less_is_better: bool) -> Cell:
    tone: Tone = "noise" if found.is_zero_possible else "gain" if (found.value < 0) == less_is_better else "loss"
    return Cell(value, f"{_signed(found.value)} ({_signed(found.low)} to {_signed(found.high)})", tone)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _spread(found: Interval, digits: int) -> Cell:
    return Cell(f"{found.value:.{digits}f}", f"{found.low:.{digits}f} to {found.high:.{digits}f}")


def _perplexity(candidate: Candidate) -> Cell:
    ratio = candidate.perplexity_ratio
    value, low, high = map(plain, ratio)
    return Cell(plain(candidate.perplexity), f"× {value} ({low} to {high})")


def plain(value: float) -> str:
    """A perplexity, or a ratio of two, with four decimals, of huge ones with their power of ten."""
    return f"{value:.4f}" if value < _HUGE else f"{value:.1e}"


def _changed(candidate: Candidate) -> Cell:
    if candidate.answers_changed is None:
        return Cell(NOT_AVAILABLE)
    where = candidate.first_change
    return Cell(str(candidate.answers_changed), "" if where is None else f"from token {where + 1:.0f} on (median)")


def _cost(sides: list[Side]) -> list[Row]:
    costs = [side.cost for side in sides]
    fields = (
        ("Weights", "MiB", "weights", 1),
        ("KV cache", "MiB, 4096 tokens", "kv_cache_at_4096", 1),
        ("Memory", "MiB gained on loading, the first with the runtime’s own", "resident", 1),
        ("Speed", "tokens a second, picture included", "tokens_per_second", 0),
    )
    rows = []
    for label, note, name, digits in fields:
        values = [None if cost is None else getattr(cost, name) for cost in costs]
        rows.append(Row(label, note, [Cell(NOT_AVAILABLE if v is None else f"{v:.{digits}f}") for v in values]))
    return rows
