"""The section of a report on control tokens and endings: its table, its lines on the screen, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.compare.report.table import (
    NOT_AVAILABLE,
    Cell,
    Group,
    Row,
    difference_cell,
    format_interval,
    interval_cell,
)
from runtime.compare.result import CONTROL_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.compare.result import Candidate, Comparison, ControlKind, ControlToken, EndingChanges, ModelSummary

TITLE = "Control tokens and endings"
LABELS: dict[ControlKind, str] = {
    "reasoning_end": "End of reasoning",
    "turn_end": "End of turn",
    "tool_call": "Tool call",
}


def stopping_groups(comparison: Comparison) -> list[Group]:
    """Build the table: a group for each kind of control token that the documents have, and one for endings."""
    by_kind = {kind: _of_kind(comparison, kind) for kind in CONTROL_KINDS}
    groups = [
        Group(f"{LABELS[kind]}, {tokens[0].positions} positions", _control_rows(tokens))
        for kind, tokens in by_kind.items()
        if tokens
    ]
    return [*groups, Group("Greedy answers", _ending_rows(comparison.baseline, comparison.candidates))]


def missing(comparison: Comparison) -> list[str]:
    """Say why a kind of control token has no rows."""
    lines = []
    for kind in CONTROL_KINDS:
        if not comparison.metadata["control_tokens"][kind]:
            lines.append(f"{LABELS[kind]}: not measured, the tokenizer has no such token.")
        elif not _of_kind(comparison, kind):
            hint = "; rendered documents of the kind reasoning have one" if kind == "reasoning_end" else ""
            lines.append(f"{LABELS[kind]}: not measured, no true answer has one that the baseline knows{hint}.")
    return lines


def stopping_lines(candidate: Candidate) -> Iterator[str]:
    """Sum up a candidate in lines for the screen."""
    for token in candidate.control_tokens:
        probability = f"{token.probability:.4f}, {token.probability_change.with_signs(4)}"
        rank = f"{token.rank:.2f}, {token.rank_change.with_signs(2)}"
        yield (
            f"{LABELS[token.kind].lower()}, {token.positions} positions: KL {format_interval(token.kl, 5)}; "
            f"probability {probability}; rank {rank}"
        )
    if candidate.endings is None:
        return
    values, changes = candidate.endings, candidate.ending_changes
    parts = [f"{values.finished:.4f} end by themselves", f"{values.loops:.4f} in a loop", f"{values.tokens:.1f} tokens"]
    if changes is not None:
        parts[0] += f", {changes.finished.with_signs(4)}"
        parts[1] += f", {changes.loops.with_signs(4)}"
        parts[2] += f", × {format_interval(changes.length_ratio, 3)}"
    yield f"answers: {'; '.join(parts)}"


def _of_kind(comparison: Comparison, kind: ControlKind) -> list[ControlToken]:
    """What was found of a kind, for each candidate; empty where the documents have none."""
    return [token for candidate in comparison.candidates for token in candidate.control_tokens if token.kind == kind]


def _control_rows(tokens: Sequence[ControlToken]) -> list[Row]:
    """Rows of one kind of control token. tokens: of each candidate."""
    baseline, rank = f"{tokens[0].baseline_probability:.4f}", f"{tokens[0].baseline_rank:.2f}"
    probabilities = [
        difference_cell(f"{t.probability:.4f}", t.probability_change, less_is_better=False) for t in tokens
    ]
    ranks = [difference_cell(f"{t.rank:.2f}", t.rank_change, less_is_better=True) for t in tokens]
    return [
        Row("KL divergence", "nats per position", [Cell("–"), *(interval_cell(token.kl, 5) for token in tokens)]),
        Row("Probability", "of the true token, mean", [Cell(baseline), *probabilities]),
        Row("Rank", "of the true token, mean; 1 is the likeliest", [Cell(rank), *ranks]),
    ]


def _ending_rows(baseline: ModelSummary, candidates: Sequence[Candidate]) -> list[Row]:
    cells = [_ending_cells(baseline, None), *(_ending_cells(one, one.ending_changes) for one in candidates)]
    labels = (
        ("End by themselves", "share, more is better"),
        ("In a loop", "share, less is better"),
        ("Length", "tokens, mean; below: of all answers, divided by the baseline's"),
        ("Unfinished", "share, of those that end with the baseline"),
    )
    return [Row(*label, list(row)) for label, row in zip(labels, zip(*cells, strict=True), strict=True)]


def _ending_cells(model: ModelSummary, changes: EndingChanges | None) -> list[Cell]:
    """A model's cells, from top to bottom. changes: None for the baseline, and where that has no answers."""
    if model.endings is None:
        return [Cell(NOT_AVAILABLE)] * 4
    finished, loops = f"{model.endings.finished:.4f}", f"{model.endings.loops:.4f}"
    length = Cell(f"{model.endings.tokens:.1f}")
    if changes is None:
        return [Cell(finished), Cell(loops), length, Cell("–")]
    ratio = interval_cell(changes.length_ratio, 3)
    return [
        difference_cell(finished, changes.finished, less_is_better=False),
        difference_cell(loops, changes.loops, less_is_better=True),
        length._replace(detail=f"× {ratio.value} ({ratio.detail})"),
        Cell(NOT_AVAILABLE) if changes.unfinished is None else interval_cell(changes.unfinished, 4),
    ]
