"""What differs between two texts, word by word, and letter by letter where two words are alike."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ALIKE = 0.5  # share of letters in common from which two replaced texts are compared letter by letter
_WORDS = re.compile(r"\s|\w+|[^\w\s]")

Kind = Literal["same", "removed", "added"]


class Piece(NamedTuple):
    """A run of text: in both, in the first only, or in the second only."""

    kind: Kind
    text: str


def differences(first: str, second: str) -> list[Piece]:
    """Pieces whose same and removed ones spell the first text, and whose same and added ones spell the second."""
    pieces: list[Piece] = []
    for piece in _words(first, second):
        if pieces and pieces[-1].kind == piece.kind:
            pieces[-1] = Piece(piece.kind, pieces[-1].text + piece.text)
        elif piece.text:
            pieces.append(piece)
    return pieces


def _words(first: str, second: str) -> Iterator[Piece]:
    for tag, before, after in _aligned(_WORDS.findall(first), _WORDS.findall(second)):
        if tag == "replace" and SequenceMatcher(None, before, after, autojunk=False).ratio() >= _ALIKE:
            for _, removed, added in _aligned(before, after):
                yield from _changed(removed, added)
        else:
            yield from _changed(before, after)


def _aligned(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for tag, i, j, k, m in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        yield tag, "".join(first[i:j]), "".join(second[k:m])


def _changed(before: str, after: str) -> Iterator[Piece]:
    if before == after:
        yield Piece("same", before)
    else:
        yield from (Piece("removed", before), Piece("added", after))
