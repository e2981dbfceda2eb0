"""Judges a candidate: limits that it must keep (gates), and findings in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.compare.result import Check, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.compare.result import EndingChanges, ExactMatch, Layer, Scores
    from runtime.compare.statistics import Interval

MIN_BASELINE_ANLS = 0.5  # below, the baseline reads too little for scores of answers to be discriminative
SIGNIFICANT_P = 0.05


@dataclass(frozen=True)
class Gates:
    """Limits of a candidate; None is not checked."""

    max_kl: float | None = None
    """Mean KL divergence, nats per token."""
    max_drop_anls: float | None = 0.02
    """Loss of mean ANLS."""
    min_agreement: float | None = None
    """Share of tokens for which both models predict the same token."""
    max_unfinished: float | None = 0.02
    """Share of answers that do not end, of those that end with the baseline."""


def judge(
    gates: Gates,
    mean_kl: Interval,
    agreement: Interval,
    differences: Mapping[str, Interval] | None,
    ending_changes: EndingChanges | None,
    baseline: Scores | None,
    exact_match: ExactMatch | None,
    layers: Sequence[Layer],
) -> Verdict:
    """Check every gate, and say which differences are significant.

    differences, ending_changes, baseline and exact_match are None if the baseline has no answers.
    """
    checks = []
    if gates.max_drop_anls is not None:
        drop = None if differences is None else 0.0 - differences["anls"].value  # avoids -0.0
        checks.append(_check_answers("--max-drop-anls", gates.max_drop_anls, drop, baseline))
    if gates.max_unfinished is not None:
        share = None if ending_changes is None else ending_changes.unfinished
        value = None if share is None else share.value
        checks.append(_check_answers("--max-unfinished", gates.max_unfinished, value, baseline))
    if gates.max_kl is not None:
        checks.append(Check("--max-kl", gates.max_kl, mean_kl.value, mean_kl.value <= gates.max_kl))
    if gates.min_agreement is not None:
        passed = agreement.value >= gates.min_agreement
        checks.append(Check("--min-agreement", gates.min_agreement, agreement.value, passed))
    findings = [*baseline_warnings(baseline), *_score_findings(differences, exact_match), *_damaged_layers(layers)]
    outcomes = {check.outcome for check in checks}
    if outcomes <= {"not judged"}:
        findings.append("No gate could be judged, so the candidate does not pass; give --max-kl or --min-agreement.")
    return Verdict("passes" in outcomes and "fails" not in outcomes, checks, findings)


def _check_answers(option: str, limit: float, value: float | None, baseline: Scores | None) -> Check:
    """Check a limit on answers: against a weak baseline a candidate can fail it, but not pass."""
    if value is None:
        return Check(option, limit, None, None)
    within_limit = None if baseline_warnings(baseline) else True
    return Check(option, limit, value, within_limit if value <= limit else False)


def baseline_warnings(baseline: Scores | None) -> list[str]:
    """Why answers cannot be judged against this baseline; empty if they can."""
    if baseline is None:
        return ["The baseline is a reference without answers: differences of scores are not available."]
    if baseline.anls >= MIN_BASELINE_ANLS:
        return []
    return [
        f"The baseline is too weak to judge by: its ANLS on these documents is {baseline.anls:.3f}, below "
        f"{MIN_BASELINE_ANLS}. Give --max-kl or --min-agreement, or documents that it can read."
    ]


def _score_findings(differences: Mapping[str, Interval] | None, exact_match: ExactMatch | None) -> list[str]:
    if differences is None or exact_match is None:
        return []
    lines = []
    for name in ("anls", "cer"):
        change = differences[name]
        label = f"{name.upper()} changes by {change.with_signs(4)}"
        if change.contains_zero:
            lines.append(f"{label}: within noise.")
        else:
            improved = (change.value > 0) == (name == "anls")
            lines.append(f"{label}: a significant {'gain' if improved else 'loss'}.")
    lost, gained, p = exact_match.only_baseline, exact_match.only_candidate, exact_match.p
    p_value = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    verdict = "within noise" if p >= SIGNIFICANT_P else "significant"
    lines.append(f"Exact match: {lost} lost, {gained} gained (McNemar {p_value}): {verdict}.")
    return lines


def _damaged_layers(layers: Sequence[Layer]) -> list[str]:
    return [
        f"Layer {layer.name} may be damaged: its relative weight error is {layer.error:.2f}, several times that of "
        f"other {layer.bits}-bit layers."
        for layer in layers
        if layer.suspect
    ]
