"""Marked differences, against rapidfuzz's insertion-and-deletion distance."""

import random
import time
from itertools import pairwise

import pytest
from rapidfuzz.distance import Indel

from runtime.compare.report.diff import Piece, differences

ALPHABET = "ab1,. \n원가"


def spelled(pieces, *kinds):
    return "".join(piece.text for piece in pieces if piece.kind in kinds)


def test_pieces_spell_both_texts_and_mark_no_less_than_the_distance():
    rng = random.Random(0)
    for _ in range(500):
        first, second = ("".join(rng.choices(ALPHABET, k=rng.randrange(15))) for _ in range(2))
        pieces = differences(first, second)
        assert spelled(pieces, "same", "removed") == first
        assert spelled(pieces, "same", "added") == second
        assert len(spelled(pieces, "removed", "added")) >= Indel.distance(first, second)
        assert all(one.kind != other.kind for one, other in pairwise(pieces))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Number: J-39672", "Number: JJ-39672", [("same", "Number: J"), ("added", "J"), ("same", "-39672")]),
        ("1,000원", "1,000", [("same", "1,000"), ("removed", "원")]),
        ("pay the bill", "pay bill", [("same", "pay "), ("removed", "the "), ("same", "bill")]),
        ("Seoul", "2026", [("removed", "Seoul"), ("added", "2026")]),
        ("same", "same", [("same", "same")]),
        ("", "", []),
        ("", "x", [("added", "x")]),
    ],
)
def test_examples(first, second, expected):
    """Words are marked as wholes, and letters in words that are alike."""
    assert differences(first, second) == [Piece(*pair) for pair in expected]


@pytest.mark.parametrize("loop", ["합계 10,000원 ", "ab", "0 "])
def test_an_answer_that_goes_round_in_circles_takes_no_minutes(loop):
    """By letters, or by words that all match each other, difflib takes minutes to hours."""
    truth = " ".join(f"항목{number} {number * 37 % 1000},000원" for number in range(800))
    start = time.process_time()
    pieces = differences(truth, loop * 2000)
    assert time.process_time() - start < 5
    assert spelled(pieces, "same", "removed") == truth
    assert spelled(pieces, "same", "added") == loop * 2000


def test_letters_are_compared_in_short_parts_only():
    first, second = "a" * 300, "a" * 299 + "b"
    assert len(differences(first, second)) == 3
    assert [piece.kind for piece in differences(first * 2, second * 2)] == ["removed", "added"]
