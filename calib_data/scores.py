"""Score an answer against the truth: exact match, character error rate, ANLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

if TYPE_CHECKING:
    from collections.abc import Sequence

ANLS_THRESHOLD = 0.5


def exact_match(answer: str, truth: str) -> float:
    """Return 1.0 if both texts are equal up to white space around and between words, else 0.0."""
    return float(answer.split() == truth.split())


def character_error_rate(answer: str, truth: str) -> float:
    """Edits per character of the truth, above 1 if the answer is much longer. Outer white space does not count."""
    answer, truth = answer.strip(), truth.strip()
    if not truth:
        return float(bool(answer))
    return Levenshtein.distance(answer, truth) / len(truth)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of one answer (Biten et al. 2019, eq. 1), threshold 0.5.

    The best similarity over the accepted truths; case and outer white space do not count. 0 if half of the characters
    or more differ.
    """
    if isinstance(truths, str) or not truths:
        raise ValueError("anls takes a non-empty list of accepted answers")
    best = max(_similarity(answer.strip().lower(), truth.strip().lower()) for truth in truths)
    return best if best > ANLS_THRESHOLD else 0.0


def _similarity(answer: str, truth: str) -> float:
    longest = max(len(answer), len(truth))
    return 1.0 - Levenshtein.distance(answer, truth) / longest if longest else 1.0
