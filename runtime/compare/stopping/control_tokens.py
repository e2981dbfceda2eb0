"""Predictions where the true next token is a control token: one that ends reasoning or the turn, or opens a tool call.

An answer has one or two of them among hundreds of tokens, so a mean over all tokens hides what happens there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from runtime.compare.result import CONTROL_KINDS, ControlToken
from runtime.compare.statistics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.compare.result import ControlKind, DocumentResult, ModelResult
    from runtime.exported import ExportedModel


def control_ids(model: ExportedModel) -> dict[ControlKind, list[int]]:
    """Token ids of each kind, from the model's tokenizer and generation_config.json; empty where it has none."""
    reasoning_end, tool_call = model.chat.think_end_id, model.chat.tool_call_id
    return {
        "reasoning_end": [] if reasoning_end is None else [reasoning_end],
        "turn_end": model.end_ids,
        "tool_call": [] if tool_call is None else [tool_call],
    }


def control_positions(tokens: Sequence[int], ids: Mapping[ControlKind, Sequence[int]]) -> dict[ControlKind, list[int]]:
    """Positions of the control tokens of each kind among the tokens of a true answer; kinds without any left out."""
    found = {kind: [place for place, token in enumerate(tokens) if token in ids[kind]] for kind in ids}
    return {kind: places for kind, places in found.items() if places}


def summarize_control_tokens(documents: Sequence[DocumentResult], number: int) -> list[ControlToken]:
    """Sum up a candidate's predictions of each kind that the documents have. number: its place among candidates."""
    found = (_summarize_kind(kind, documents, number) for kind in CONTROL_KINDS)
    return [summary for summary in found if summary is not None]


def _summarize_kind(kind: ControlKind, documents: Sequence[DocumentResult], number: int) -> ControlToken | None:
    """None without a position at which the baseline knows the token."""
    rows = []
    for document in documents:
        before, after, kl = document.baseline, document.candidates[number], document.differences[number].kl
        known = [place for place in document.control.get(kind, ()) if before.log_likelihood[place] is not None]
        if known:
            values = [(kl[place], *_at(before, place), *_at(after, place)) for place in known]
            rows.append((*np.sum(values, 0), len(known)))
    if not rows:
        return None
    kl_sums, p_before, rank_before, p_after, rank_after, counts = np.array(rows).T
    total = counts.sum()
    return ControlToken(
        kind=kind,
        positions=int(total),
        kl=bootstrap(kl_sums, counts, least=0.0),
        baseline_probability=float(p_before.sum() / total),
        probability=float(p_after.sum() / total),
        probability_change=bootstrap(p_after - p_before, counts, least=-1.0, most=1.0),
        baseline_rank=float(rank_before.sum() / total),
        rank=float(rank_after.sum() / total),
        rank_change=bootstrap(rank_after - rank_before, counts),
    )


def _at(result: ModelResult, place: int) -> tuple[float, float]:
    """Probability and rank of the true token. A candidate knows both everywhere, a baseline where it knows one."""
    log_likelihood, rank = result.log_likelihood[place], result.rank[place]
    assert log_likelihood is not None
    assert rank is not None
    return math.exp(log_likelihood), float(rank)
