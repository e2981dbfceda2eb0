"""All that a comparison found, as `compare.json` keeps it. Its schema is docs/compare.schema.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from console.errors import InputError
from runtime.compare.baseline import FolderBaseline
from runtime.compare.gate import Gates, Verdict, judge
from runtime.compare.layers import list_layers, of_baseline
from runtime.compare.statistics import Interval, bootstrap, mcnemar
from runtime.evaluate import SCORES, summary
from runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.compare.layers import Layer
    from runtime.compare.measure import Measured, Reading
    from runtime.compare.run import Loaded, Models
    from runtime.evaluate import Scored

FORMAT = 1
_MOST_NATS = 709.0  # of which the exponential is a float still; JSON has no infinity


@dataclass(frozen=True)
class Cost:
    """What a model takes. Sizes in MiB.

    resident: memory that the process gained by loading its decoder; None where the system does not tell.
    tokens_per_second: of whole answers, picture included; None where there are none.
    """

    weights: float
    kv_cache_at_4096: float
    resident: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Scores:
    """Means over documents."""

    exact_match: float
    cer: float
    anls: float


@dataclass(frozen=True)
class ExactMatch:
    """Documents that only one of both models answers exactly, and the p-value of McNemar's test."""

    only_baseline: int
    only_candidate: int
    p: float


@dataclass(frozen=True)
class Side:
    """One model.

    model: as it was named. scores: None for a reference, which has no answers. perplexity: of a token of the true
    answers, of those whose likelihood the baseline knows: a reference knows its likeliest only. It and its ratio are at
    most e^709, where a float ends.
    """

    model: str
    scores: Scores | None
    perplexity: float
    cost: Cost | None


@dataclass(frozen=True)
class Candidate(Side):
    """A candidate against the baseline.

    Differences are candidate less baseline, ratios candidate by baseline, with 95 % intervals over documents. mean_kl
    in nats a token; agreement: share of tokens of which both find the same likeliest. answers_changed, first_change
    (median place of the first token that differs, in answers that do): None where the baseline has no answers.
    """

    mean_kl: Interval
    agreement: Interval
    perplexity_ratio: Interval
    differences: dict[str, Interval] | None
    exact_match_test: ExactMatch | None
    answers_changed: int | None
    first_change: float | None
    kl_by_position: list[float]
    layers: list[Layer]
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Everything but the documents. about: what was compared, on which documents, by which versions."""

    about: dict[str, Any]
    baseline: Side
    candidates: list[Candidate]

    @property
    def passed(self) -> bool:
        """Whether every candidate passes: no gate fails, and one could be judged."""
        return all(candidate.verdict.passed for candidate in self.candidates)

    def to_json(self, documents: Sequence[Measured]) -> dict[str, Any]:
        """The content of compare.json."""
        result = {"format": FORMAT, "passed": self.passed, **self.about}
        result |= {
            "baseline": _plain(asdict(self.baseline)),
            "candidates": [_plain(asdict(c)) for c in self.candidates],
        }
        return {**result, "documents": [document.to_json() for document in documents]}


def _plain(value: Any) -> Any:  # noqa: ANN401 - nested dictionaries
    """Intervals with names, which asdict leaves as tuples."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def summarize(
    models: Models, loaded: Loaded, measured: Sequence[Measured], gates: Gates, about: dict[str, Any]
) -> Comparison:
    """Sum up all documents and judge every candidate."""
    weights, cost = None, None
    if isinstance(loaded.baseline, FolderBaseline):
        weights, cost = Weights(models.baseline, loaded.baseline.model.manifest.weights), loaded.costs[0]
    notes = of_baseline(weights) if weights else []
    candidates = []
    for number, path in enumerate(models.candidates):
        model, taken = loaded.candidates[number], loaded.costs[number - len(models.candidates)]
        parts = list_layers(path, model.manifest, weights)
        candidates.append(candidate_side(str(path), number, measured, gates, cost=taken, layers=parts, notes=notes))
    return Comparison(about, baseline_side(str(models.baseline), measured, cost), candidates)


def baseline_side(model: str, measured: Sequence[Measured], cost: Cost | None) -> Side:
    """Sum up the baseline."""
    readings = [one.baseline for one in measured]
    return Side(model, *_sum_up(readings, readings), _timed(cost, readings))


def _timed(cost: Cost | None, readings: Sequence[Reading]) -> Cost | None:
    scored = [one.scored for one in readings if one.scored is not None]
    if cost is None or not scored:
        return cost
    return replace(cost, tokens_per_second=summary(scored)["tokens_per_second"])


def candidate_side(
    model: str,
    number: int,
    measured: Sequence[Measured],
    gates: Gates,
    *,
    cost: Cost | None = None,
    layers: Sequence[Layer] = (),
    notes: Sequence[str] = (),
) -> Candidate:
    """Sum up one candidate, the `number`th of those that were measured, and judge it. notes: first of its findings."""
    before, after = [one.baseline for one in measured], [one.candidates[number] for one in measured]
    apart = [one.differences[number] for one in measured]
    scores, perplexity = _sum_up(after, before)
    counts = [len(one.kl) for one in apart]
    pairs = [_shared_likelihood(*pair) for pair in zip(before, after, strict=True)]
    ratio = bootstrap([lost for lost, _ in pairs], [known for _, known in pairs])
    mean_kl = bootstrap([sum(one.kl) for one in apart], counts, least=0.0)
    agreement = bootstrap([sum(one.agree) for one in apart], counts, least=0.0, most=1.0)
    differences = _differences(before, after)
    exact_match = _exact_match(before, after) if differences else None
    verdict = judge(gates, mean_kl, agreement, differences, scores_of(before), exact_match, layers)
    changes = [one.first_change for one in apart if one.first_change is not None]
    return Candidate(
        model=model,
        scores=scores,
        perplexity=perplexity,
        cost=_timed(cost, after),
        mean_kl=mean_kl,
        agreement=agreement,
        perplexity_ratio=Interval(*map(_exp, ratio)),
        differences=differences,
        exact_match_test=exact_match,
        answers_changed=len(changes) if differences else None,
        first_change=float(np.median(changes)) if changes else None,
        kl_by_position=by_position([one.kl for one in apart]).tolist(),
        layers=list(layers),
        verdict=replace(verdict, findings=[*notes, *verdict.findings]),
    )


def scores_of(readings: Sequence[Reading]) -> Scores | None:
    """Mean scores of answers; None where there are none."""
    scored = [one.scored for one in readings if one.scored is not None]
    if not scored:
        return None
    means = summary(scored)
    return Scores(means["exact_match"], means["cer"], means["anls"])


def _sum_up(readings: Sequence[Reading], baseline: Sequence[Reading]) -> tuple[Scores | None, float]:
    """Scores, and the perplexity of tokens whose likelihood the baseline knows too."""
    pairs = [zip(r.log_likelihood, b.log_likelihood, strict=True) for r, b in zip(readings, baseline, strict=True)]
    known = [own for pair in pairs for own, other in pair if own is not None and other is not None]
    if not known:
        raise InputError("the reference knows no token of any true answer; quantize again for a new one")
    return scores_of(readings), _exp(-float(np.mean(known)))


def _exp(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def _shared_likelihood(before: Reading, after: Reading) -> tuple[float, int]:
    """Nats that a candidate loses on the tokens whose likelihood both know, and how many these are."""
    pairs = zip(before.log_likelihood, after.log_likelihood, strict=True)
    lost = [one - other for one, other in pairs if one is not None and other is not None]
    return sum(lost), len(lost)


def _answered(before: Sequence[Reading], after: Sequence[Reading]) -> list[tuple[Scored, Scored]]:
    """Answers of both models, document by document, where both gave one."""
    return [(one.scored, other.scored) for one, other in zip(before, after, strict=True) if one.scored and other.scored]


def _differences(before: Sequence[Reading], after: Sequence[Reading]) -> dict[str, Interval] | None:
    pairs = _answered(before, after)
    if not pairs:
        return None
    found = {}
    for name in SCORES:
        lost = [getattr(b, name) - getattr(a, name) for a, b in pairs]
        # Where nothing was right, or all was, no more can be lost or gained; an error rate has no upper limit.
        found[name] = bootstrap(lost) if name == "cer" else bootstrap(lost, least=-1.0, most=1.0)
    return found


def _exact_match(before: Sequence[Reading], after: Sequence[Reading]) -> ExactMatch:
    pairs = [(one.exact_match, other.exact_match) for one, other in _answered(before, after)]
    lost, gained = (sum(pair == split for pair in pairs) for split in ((1.0, 0.0), (0.0, 1.0)))
    return ExactMatch(lost, gained, mcnemar(lost, gained))


def by_position(values: Sequence[Sequence[float]], width: int = 1) -> NDArray[np.float64]:
    """Means of what documents have at each place, over those that are as long; width: of so many places together."""
    bins = np.concatenate([np.arange(len(one)) // width for one in values])
    means: NDArray[np.float64] = np.bincount(bins, np.concatenate(values)) / np.bincount(bins)
    return means
