"""Whether a candidate may ship: limits that it must keep, and what its numbers say in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.compare.layers import Layer
    from runtime.compare.result import ExactMatch, Scores
    from runtime.compare.statistics import Interval

WEAK = 0.5  # a baseline with less ANLS reads too little for its scores to tell models apart
_LABELS = {"--max-drop-anls": "ANLS drop", "--max-kl": "mean KL", "--min-agreement": "agreement"}


@dataclass(frozen=True)
class Gates:
    """Limits; None is not checked. max_kl: nats a token. max_drop_anls: of the mean. min_agreement: share of tokens."""

    max_kl: float | None = None
    max_drop_anls: float | None = 0.02
    min_agreement: float | None = None


@dataclass(frozen=True)
class Check:
    """One gate. value: None where the baseline has no answers to measure it by.

    passed: None where that cannot be told, as the baseline has no answers, or reads too little to have any to lose.
    """

    option: str
    limit: float
    value: float | None
    passed: bool | None

    @property
    def outcome(self) -> Literal["passes", "fails", "not judged"]:
        """What came of it."""
        return "not judged" if self.passed is None else "passes" if self.passed else "fails"

    @property
    def line(self) -> str:
        """The check in words."""
        label = _LABELS[self.option]
        if self.value is None:
            return f"{label}: not available, as the baseline has no answers"
        outcome = "FAILS" if self.outcome == "fails" else self.outcome
        return f"{label} {self.value:.5f}, {self.option} {self.limit}: {outcome}"


@dataclass(frozen=True)
class Verdict:
    """What came of all gates, and what the numbers say.

    passed: none fails, and one at least could be judged: what nothing was learnt about must not ship.
    """

    passed: bool
    checks: list[Check]
    findings: list[str]

    @property
    def outcome(self) -> Literal["passes", "fails", "not judged"]:
        """What came of all."""
        return "passes" if self.passed else "fails" if any(c.outcome == "fails" for c in self.checks) else "not judged"


def judge(
    gates: Gates,
    mean_kl: Interval,
    agreement: Interval,
    differences: Mapping[str, Interval] | None,
    baseline: Scores | None,
    exact_match: ExactMatch | None,
    layers: Sequence[Layer],
) -> Verdict:
    """Check every gate, and put into words what is significant and what is noise."""
    checks = []
    if gates.max_drop_anls is not None:
        checks.append(_drop(gates.max_drop_anls, differences, baseline))
    if gates.max_kl is not None:
        checks.append(Check("--max-kl", gates.max_kl, mean_kl.value, mean_kl.value <= gates.max_kl))
    if gates.min_agreement is not None:
        passed = agreement.value >= gates.min_agreement
        checks.append(Check("--min-agreement", gates.min_agreement, agreement.value, passed))
    findings = [*about_baseline(baseline), *_scores(differences, exact_match), *_suspects(layers)]
    outcomes = {check.outcome for check in checks}
    if outcomes <= {"not judged"}:
        findings.append("No gate could be judged, so none is passed; give --max-kl or --min-agreement.")
    return Verdict("passes" in outcomes and "fails" not in outcomes, checks, findings)


def _drop(limit: float, differences: Mapping[str, Interval] | None, baseline: Scores | None) -> Check:
    if differences is None:
        return Check("--max-drop-anls", limit, None, None)
    drop = 0.0 - differences["anls"].value  # and no -0.0
    kept = None if about_baseline(baseline) else True
    return Check("--max-drop-anls", limit, drop, kept if drop <= limit else False)


def about_baseline(baseline: Scores | None) -> list[str]:
    """What keeps a baseline from judging by answers; nothing for a good one."""
    if baseline is None:
        return ["The baseline is a reference without answers: scores of answers are not available."]
    if baseline.anls >= WEAK:
        return []
    return [
        f"The baseline is too weak to judge by: it reads too little of these documents (ANLS {baseline.anls:.3f}) for "
        "scores of answers to tell models apart. KL and agreement do, or give documents that it can read."
    ]


def _scores(differences: Mapping[str, Interval] | None, exact_match: ExactMatch | None) -> list[str]:
    if differences is None or exact_match is None:
        return []
    lines = []
    for name, better in (("anls", "more"), ("cer", "less")):
        found = differences[name]
        label = f"{name.upper()} changes by {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
        if found.is_zero_possible:
            lines.append(f"{label}: within noise.")
        else:
            gained = (found.value > 0) == (better == "more")
            lines.append(f"{label}: a significant {'gain' if gained else 'loss'}.")
    lost, gained_, p = exact_match.only_baseline, exact_match.only_candidate, exact_match.p
    chance = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    word = "within noise" if p >= 0.05 else "significant"
    lines.append(f"Exact match: {lost} lost, {gained_} gained (McNemar {chance}): {word}.")
    return lines


def _suspects(layers: Sequence[Layer]) -> list[str]:
    return [
        f"Layer {layer.name}: its weights are {layer.error:.2f} of their size away from the baseline's, several times "
        f"as far as others of {layer.bits} bits. Is it damaged?"
        for layer in layers
        if layer.suspect
    ]
