"""Sums up all documents of a comparison: scores, confidence intervals, layer errors and the verdict."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from console.errors import InputError
from runtime.compare.gate import Gates, judge
from runtime.compare.layers import list_layers, quantized_baseline_warning
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.result import Candidate, Comparison, ExactMatch, ModelSummary, Scores
from runtime.compare.statistics import Interval, bootstrap, mcnemar, mean_by_position
from runtime.compare.stopping.control_tokens import summarize_control_tokens
from runtime.compare.stopping.endings import compare_endings, summarize_endings
from runtime.evaluate import SCORES, summary
from runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.compare.measuring.models import LoadedModels, Models
    from runtime.compare.result import Cost, DocumentResult, Layer, ModelResult
    from runtime.evaluate import Scored

_MAX_NATS = 709.0  # e^709 is still a float; JSON has no infinity


def summarize(
    models: Models, loaded: LoadedModels, documents: Sequence[DocumentResult], gates: Gates, metadata: dict[str, Any]
) -> Comparison:
    """Sum up all documents, and judge every candidate."""
    weights, cost = None, None
    if isinstance(loaded.baseline, FolderBaseline):
        weights, cost = Weights(models.baseline, loaded.baseline.model.manifest.weights), loaded.costs[0]
    warnings = quantized_baseline_warning(weights) if weights else []
    candidates = []
    candidate_costs = loaded.costs[-len(models.candidates) :]
    for number, (path, model) in enumerate(zip(models.candidates, loaded.candidates, strict=True)):
        layers = list_layers(path, model.manifest, weights)
        candidate = summarize_candidate(
            str(path), number, documents, gates, cost=candidate_costs[number], layers=layers, warnings=warnings
        )
        candidates.append(candidate)
    return Comparison(metadata, summarize_baseline(str(models.baseline), documents, cost), candidates)


def summarize_baseline(model: str, documents: Sequence[DocumentResult], cost: Cost | None) -> ModelSummary:
    """Sum up the baseline."""
    return _summarize_model(model, [document.baseline for document in documents], documents, cost)


def summarize_candidate(
    model: str,
    number: int,
    documents: Sequence[DocumentResult],
    gates: Gates,
    *,
    cost: Cost | None = None,
    layers: Sequence[Layer] = (),
    warnings: Sequence[str] = (),
) -> Candidate:
    """Sum up and judge one candidate. number: its place among the candidates of each document."""
    before = [document.baseline for document in documents]
    after = [document.candidates[number] for document in documents]
    apart = [document.differences[number] for document in documents]
    own = _summarize_model(model, after, documents, cost)
    counts = [len(difference.kl) for difference in apart]
    mean_kl = bootstrap([sum(difference.kl) for difference in apart], counts, least=0.0)
    agreement = bootstrap([sum(difference.agree) for difference in apart], counts, least=0.0, most=1.0)
    differences, exact_match = _score_differences(before, after)
    ending_changes = compare_endings(_answer_pairs(before, after))
    verdict = judge(gates, mean_kl, agreement, differences, ending_changes, _mean_scores(before), exact_match, layers)
    changes = [difference.first_change for difference in apart if difference.first_change is not None]
    return Candidate(
        **vars(own),
        mean_kl=mean_kl,
        agreement=agreement,
        perplexity_ratio=_perplexity_ratio(before, after),
        differences=differences,
        exact_match_test=exact_match,
        answers_changed=len(changes) if differences else None,
        first_change=float(np.median(changes)) if changes else None,
        ending_changes=ending_changes,
        control_tokens=summarize_control_tokens(documents, number),
        kl_by_position=mean_by_position([difference.kl for difference in apart]).tolist(),
        layers=list(layers),
        verdict=replace(verdict, findings=[*warnings, *verdict.findings]),
    )


def _summarize_model(
    model: str, results: Sequence[ModelResult], documents: Sequence[DocumentResult], cost: Cost | None
) -> ModelSummary:
    """Mean scores, speed, and perplexity over the tokens whose likelihood the baseline knows as well."""
    pairs = _known_pairs([document.baseline for document in documents], results)
    known = [own for pair in pairs for _, own in pair]
    if not known:
        raise InputError("the reference knows no token of any true answer; run python -m quantize again for a new one")
    answers = _answers(results)
    if cost is not None and answers:
        cost = replace(cost, tokens_per_second=summary(answers)["tokens_per_second"])
    return ModelSummary(model, _mean_scores(results), _exp(-float(np.mean(known))), summarize_endings(answers), cost)


def _answers(results: Sequence[ModelResult]) -> list[Scored]:
    return [result.scored for result in results if result.scored is not None]


def _mean_scores(results: Sequence[ModelResult]) -> Scores | None:
    answers = _answers(results)
    if not answers:
        return None
    means = summary(answers)
    return Scores(**{name: means[name] for name in SCORES})


def _exp(nats: float) -> float:
    return math.exp(min(nats, _MAX_NATS))


def _known_pairs(before: Sequence[ModelResult], after: Sequence[ModelResult]) -> list[list[tuple[float, float]]]:
    """Log-likelihoods of both models for the tokens that both know, document by document."""
    documents = [zip(b.log_likelihood, a.log_likelihood, strict=True) for b, a in zip(before, after, strict=True)]
    return [[(b, a) for b, a in document if b is not None and a is not None] for document in documents]


def _perplexity_ratio(before: Sequence[ModelResult], after: Sequence[ModelResult]) -> Interval:
    """Perplexity of the candidate divided by that of the baseline, over the tokens that both know."""
    pairs = _known_pairs(before, after)
    ratio = bootstrap([sum(b - a for b, a in document) for document in pairs], [len(document) for document in pairs])
    return Interval(*map(_exp, ratio))


def _answer_pairs(before: Sequence[ModelResult], after: Sequence[ModelResult]) -> list[tuple[Scored, Scored]]:
    """Answers of both models; none if the baseline has none."""
    return [(b.scored, a.scored) for b, a in zip(before, after, strict=True) if b.scored and a.scored]


def _score_differences(
    before: Sequence[ModelResult], after: Sequence[ModelResult]
) -> tuple[dict[str, Interval] | None, ExactMatch | None]:
    """Candidate minus baseline of each score, and McNemar's test; None if the baseline has no answers."""
    pairs = _answer_pairs(before, after)
    if not pairs:
        return None, None
    differences = {}
    for name in SCORES:
        changes = [getattr(a, name) - getattr(b, name) for b, a in pairs]
        # Shares are within 0 and 1, so their differences are within -1 and 1; an error rate has no upper limit.
        differences[name] = bootstrap(changes) if name == "cer" else bootstrap(changes, least=-1.0, most=1.0)
    exact = [(b.exact_match, a.exact_match) for b, a in pairs]
    lost, gained = exact.count((1.0, 0.0)), exact.count((0.0, 1.0))
    return differences, ExactMatch(lost, gained, mcnemar(lost, gained))
