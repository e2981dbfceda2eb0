"""Score an answer against the truth: exact match, character error rate, ANLS.

All three compare texts by what can be seen of them: see `visible`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

from console.text import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

ANLS_THRESHOLD = 0.5

# Soft hyphen, zero-width space, word joiner, byte order mark, and marks of the writing direction. The joiners U+200C
# and U+200D stay: they change how Persian and Indic words and emoji look.
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF])
_SPACE = re.compile("[\\s\u3164]")  # Unicode's white space, and the Hangul filler, which looks like a space


def visible(text: str) -> str:
    r"""What a reader sees of a text, in one form.

    Invisible characters are gone, the rest is in NFC; all line ends are \n, and all other white space is a space each;
    there is none at the ends of text and lines. Case, full-width forms, hyphens and quotes count: they look different.
    """
    lines = canonical(text.translate(_INVISIBLE)).splitlines()
    return "\n".join(_SPACE.sub(" ", line).rstrip() for line in lines).strip()


def exact_match(answer: str, truth: str) -> float:
    """Return 1.0 if both texts are equal up to white space around and between words, else 0.0."""
    return float(visible(answer).split() == visible(truth).split())


def character_error_rate(answer: str, truth: str) -> float:
    """Edits per character of the truth, above 1 if the answer is much longer. Outer white space does not count."""
    answer, truth = visible(answer), visible(truth)
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
    best = max(_similarity(visible(answer).lower(), visible(truth).lower()) for truth in truths)
    return best if best > ANLS_THRESHOLD else 0.0


def _similarity(answer: str, truth: str) -> float:
    longest = max(len(answer), len(truth))
    return 1.0 - Levenshtein.distance(answer, truth) / longest if longest else 1.0
