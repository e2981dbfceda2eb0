"""What differs between two texts, word by word, and letter by letter where two words are alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz.distance import Indel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ALIKE = 0.5  # share of letters in common from which two replaced texts are compared letter by letter
_LETTERS = 400  # longer ones are not: the memory grows with the square, and nobody reads such marks
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
    for before, after in _aligned(_WORDS.findall(first), _WORDS.findall(second)):
        if before != after and _are_alike(before, after):
            for removed, added in _aligned(before, after):
                yield from _changed(removed, added)
        else:
            yield from _changed(before, after)


def _are_alike(before: str, after: str) -> bool:
    longest = max(len(before), len(after))
    return longest <= _LETTERS and Indel.normalized_similarity(before, after) >= _ALIKE


def _aligned(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Both texts in pairs of parts, in turn equal and with nothing in common."""
    i, k = 0, 0
    for block in Indel.opcodes(first, second):
        if block.tag == "equal":
            yield "".join(first[i : block.src_start]), "".join(second[k : block.dest_start])
            i, k = block.src_end, block.dest_end
            yield ("".join(first[block.src_start : i]),) * 2
    yield "".join(first[i:]), "".join(second[k:])


def _changed(before: str, after: str) -> Iterator[Piece]:
    if before == after:
        yield Piece("same", before)
    else:
        yield from (Piece("removed", before), Piece("added", after))
