"""The data of a comparison, as `compare.json` and `documents.jsonl` hold it (schema: docs/compare.schema.json)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from runtime.compare.statistics import Interval
from runtime.evaluate import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = 2
Outcome = Literal["passes", "fails", "not judged"]
ControlKind = Literal["reasoning_end", "turn_end", "tool_call"]
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)
_LABELS = {
    "--max-drop-anls": "ANLS drop",
    "--max-unfinished": "unfinished answers",
    "--max-kl": "mean KL",
    "--min-agreement": "agreement",
}


@dataclass(frozen=True)
class ModelResult:
    """One model on one document."""

    scored: Scored | None
    """Answer and its scores; None for a reference, which has no answers."""
    log_likelihood: list[float | None]
    """Of each token of the true answer and its end, [T]; None where a reference does not know it."""
    rank: list[int | None]
    """Place of each of these tokens among all by probability, from 1, [T]; None where a reference does not know it."""


@dataclass(frozen=True)
class Difference:
    """A candidate against the baseline on one document."""

    kl: list[float]
    """KL divergence of the predictions along the true answer, in nats, [T]."""
    agree: list[bool]
    """Whether both predict the same token, [T]."""
    first_change: int | None
    """Position of the first token that differs between the answers; None if they are the same or one is missing."""


@dataclass(frozen=True)
class DocumentResult:
    """One document, read by the baseline and by every candidate."""

    name: str
    prompt: str
    truth: str
    control: dict[ControlKind, list[int]]
    """Positions of control tokens among the tokens of the true answer; kinds without any are left out."""
    baseline: ModelResult
    candidates: list[ModelResult]
    differences: list[Difference]
    """Of each candidate from the baseline."""

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DocumentResult:
        """Read what `to_json` made."""
        return cls(
            **{name: value[name] for name in ("name", "prompt", "truth", "control")},
            baseline=_model_result(value["baseline"]),
            candidates=[_model_result(candidate) for candidate in value["candidates"]],
            differences=[Difference(**difference) for difference in value["differences"]],
        )


def _model_result(value: dict[str, Any]) -> ModelResult:
    scored = value["scored"]
    return ModelResult(None if scored is None else Scored(**scored), value["log_likelihood"], value["rank"])


@dataclass(frozen=True)
class Cost:
    """What a model takes. Sizes in MiB."""

    weights: float
    kv_cache_at_4096: float
    resident: float | None
    """Memory that the process gained by loading the decoder; None where the system does not report it."""
    tokens_per_second: float | None
    """Of whole answers, image included; None without answers."""


@dataclass(frozen=True)
class Scores:
    """Means over documents."""

    exact_match: float
    cer: float
    anls: float


@dataclass(frozen=True)
class ControlToken:
    """Predictions of a candidate and the baseline where the true next token is a control token of one kind."""

    kind: ControlKind
    positions: int
    """Of all documents; those left out of which a reference does not know the token."""
    kl: Interval
    """Nats a position."""
    baseline_probability: float
    """Mean probability of the true token."""
    probability: float
    """The same for the candidate."""
    probability_change: Interval
    """Candidate minus baseline."""
    baseline_rank: float
    """Mean place of the true token by probability; 1 is the likeliest."""
    rank: float
    """The same for the candidate."""
    rank_change: Interval
    """Candidate minus baseline."""


@dataclass(frozen=True)
class Endings:
    """How the greedy answers of a model end."""

    finished: float
    """Share that end by themselves: not at the limit of tokens, nor within the reasoning."""
    loops: float
    """Share that end in a loop (`stopping.endings.in_loop`)."""
    tokens: float
    """Mean length, reasoning included."""


@dataclass(frozen=True)
class EndingChanges:
    """How the greedy answers of a candidate end, against the baseline's."""

    finished: Interval
    """Candidate minus baseline, as for the next one."""
    loops: Interval
    length_ratio: Interval
    """Tokens of all answers divided by the baseline's; the end counts as a token."""
    unfinished: Interval | None
    """Share that do not end, of the answers that end with the baseline; None if none does."""


@dataclass(frozen=True)
class ExactMatch:
    """McNemar's test of exact matches."""

    only_baseline: int
    """Documents that only the baseline answers exactly."""
    only_candidate: int
    """Documents that only the candidate answers exactly."""
    p: float


@dataclass(frozen=True)
class Layer:
    """One linear layer of a candidate."""

    name: str
    bits: int
    error: float | None
    """‖W − Ŵ‖ / ‖W‖ against the baseline's weights; None if the baseline has none."""
    reported: float | None
    """‖(W − Ŵ)X‖² / ‖WX‖² as quantize measured it; None if it did not."""
    reported_rtn: float | None
    """The same for RTN."""
    suspect: bool
    """Whether `error` is several times that of other layers of the same bit width, or too large for rounding."""


@dataclass(frozen=True)
class Check:
    """One gate and its outcome."""

    option: str
    """The option of the command that sets the limit."""
    limit: float
    value: float | None
    """None if the baseline has no answers to measure it with."""
    passed: bool | None
    """None if it cannot be judged: the baseline has no answers, or reads too little."""

    @property
    def outcome(self) -> Outcome:
        """Passes, fails or not judged."""
        return "not judged" if self.passed is None else "passes" if self.passed else "fails"

    @property
    def line(self) -> str:
        """The check in words."""
        label = _LABELS[self.option]
        if self.value is None:
            which = " that end" if self.option == "--max-unfinished" else ""
            return f"{label}: not available, the baseline has no answers{which}"
        outcome = "FAILS" if self.outcome == "fails" else self.outcome
        return f"{label} {self.value:.5f}, {self.option} {self.limit}: {outcome}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of all gates of a candidate."""

    passed: bool
    """Whether no gate fails and at least one was judged."""
    checks: list[Check]
    findings: list[str]
    """Sentences on significance, the baseline and damaged layers."""

    @property
    def outcome(self) -> Outcome:
        """Passes, fails or not judged."""
        if self.passed:
            return "passes"
        return "fails" if any(check.outcome == "fails" for check in self.checks) else "not judged"


@dataclass(frozen=True)
class ModelSummary:
    """One model over all documents."""

    model: str
    """Its path as the user gave it."""
    scores: Scores | None
    """None for a reference, which has no answers."""
    perplexity: float
    """Of the tokens of the true answers whose likelihood the baseline knows; at most e^709, where a float ends."""
    endings: Endings | None
    """None for a reference, which has no answers."""
    cost: Cost | None


@dataclass(frozen=True)
class Candidate(ModelSummary):
    """A candidate against the baseline, with 95 % confidence intervals over documents."""

    mean_kl: Interval
    """Nats per token."""
    agreement: Interval
    """Token agreement: share of tokens for which both models predict the same token."""
    perplexity_ratio: Interval
    """Candidate divided by baseline."""
    differences: dict[str, Interval] | None
    """Candidate minus baseline of each score; None if the baseline has no answers, as for the next three."""
    exact_match_test: ExactMatch | None
    answers_changed: int | None
    first_change: float | None
    """Median position of the first token that differs, over changed answers; None without any."""
    ending_changes: EndingChanges | None
    """None if the baseline has no answers."""
    control_tokens: list[ControlToken]
    """One for each kind that the true answers have."""
    kl_by_position: list[float]
    """Mean KL divergence at each token of the true answers."""
    layers: list[Layer]
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All results but those of single documents."""

    metadata: dict[str, Any]
    """Documents, device, date, versions and graphs."""
    baseline: ModelSummary
    candidates: list[Candidate]

    @property
    def passed(self) -> bool:
        """Whether every candidate passes: no gate fails, and at least one was judged."""
        return all(candidate.verdict.passed for candidate in self.candidates)

    def to_json(self, documents: Sequence[DocumentResult]) -> dict[str, Any]:
        """The content of compare.json."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            **self.metadata,
            "baseline": _named_intervals(asdict(self.baseline)),
            "candidates": [_named_intervals(asdict(candidate)) for candidate in self.candidates],
            "documents": [document.to_json() for document in documents],
        }


def _named_intervals(value: Any) -> Any:  # noqa: ANN401 - nested dictionaries
    """Turn every Interval into a dictionary: asdict leaves named tuples as they are."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _named_intervals(part) for key, part in value.items()}
    return [_named_intervals(part) for part in value] if isinstance(value, list) else value
