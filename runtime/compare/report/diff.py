"""Differences of two texts by words, and by letters within similar words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz.distance import Indel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SIMILAR = 0.5  # similarity from which a replaced text is compared by letters
_MAX_LETTERS = 400  # longer texts are not compared by letters: memory is quadratic, and nobody reads such marks
_WORDS = re.compile(r"\s|\w+|[^\w\s]")

Kind = Literal["same", "removed", "added"]


class Piece(NamedTuple):
    """A piece of text: the same in both, removed from the first, or added in the second."""

    kind: Kind
    text: str


def differences(first: str, second: str) -> list[Piece]:
    """Split two texts into pieces: same and removed ones spell the first text, same and added ones the second.

    Words are aligned by RapidFuzz; difflib takes minutes to hours for repetitive answers.
    """
    pieces: list[Piece] = []
    for piece in _word_pieces(first, second):
        if pieces and pieces[-1].kind == piece.kind:
            pieces[-1] = Piece(piece.kind, pieces[-1].text + piece.text)
        elif piece.text:
            pieces.append(piece)
    return pieces


def _word_pieces(first: str, second: str) -> Iterator[Piece]:
    for before, after in _aligned(_WORDS.findall(first), _WORDS.findall(second)):
        if before != after and _are_similar(before, after):
            for removed, added in _aligned(before, after):
                yield from _piece_pair(removed, added)
        else:
            yield from _piece_pair(before, after)


def _are_similar(before: str, after: str) -> bool:
    longest = max(len(before), len(after))
    return longest <= _MAX_LETTERS and Indel.normalized_similarity(before, after) >= _SIMILAR


def _aligned(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of aligned parts of both texts: alternately replaced and equal."""
    i, k = 0, 0
    for block in Indel.opcodes(first, second):
        if block.tag == "equal":
            yield "".join(first[i : block.src_start]), "".join(second[k : block.dest_start])
            i, k = block.src_end, block.dest_end
            yield ("".join(first[block.src_start : i]),) * 2
    yield "".join(first[i:]), "".join(second[k:])


def _piece_pair(before: str, after: str) -> Iterator[Piece]:
    if before == after:
        yield Piece("same", before)
    else:
        yield from (Piece("removed", before), Piece("added", after))
