"""How an answer is scored against the truth: exact match, character error rate, ANLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ANLS_THRESHOLD = 0.5


def exact_match(answer: str, truth: str) -> float:
    """Return 1.0 where both are the same text apart from white space around and between words, else 0.0."""
    return float(answer.split() == truth.split())


def character_error_rate(answer: str, truth: str) -> float:
    """Edits per character of the truth; above 1 where the answer is much longer. Outer white space does not count."""
    answer, truth = answer.strip(), truth.strip()
    if not truth:
        return float(bool(answer))
    return edit_distance(answer, truth) / len(truth)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of one answer (Biten et al. 2019, eq. 1), threshold 0.5.

    The best similarity over the accepted truths, case and outer white space ignored; 0 where more than half of the
    characters differ.
    """
    if isinstance(truths, str) or not truths:
        raise ValueError("anls takes a non-empty list of accepted answers")
    best = max(_similarity(answer.strip().lower(), truth.strip().lower()) for truth in truths)
    return best if best > ANLS_THRESHOLD else 0.0


def _similarity(answer: str, truth: str) -> float:
    longest = max(len(answer), len(truth))
    return 1.0 - edit_distance(answer, truth) / longest if longest else 1.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions (Wagner and Fischer 1974)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]
