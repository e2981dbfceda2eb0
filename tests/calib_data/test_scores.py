"""Scores against independent implementations: jiwer's CER, RapidFuzz's distance, DocVQA's definition of ANLS."""

import random

import jiwer
import pytest
from rapidfuzz.distance import Levenshtein

from calib_data.scores import anls, character_error_rate, edit_distance, exact_match

PAIRS = [
    ("".join(rng.choices("ab 12,가나", k=rng.randint(0, 14))), "".join(rng.choices("ab 12,가나", k=rng.randint(1, 14))))
    for rng in map(random.Random, range(1000))
]


def test_edit_distance_equals_rapidfuzz():
    for answer, truth in PAIRS:
        assert edit_distance(answer, truth) == Levenshtein.distance(answer, truth)


def test_character_error_rate_equals_jiwer():
    for answer, truth in (pair for pair in PAIRS if pair[1].strip()):
        assert character_error_rate(answer, truth) == pytest.approx(jiwer.cer(truth.strip(), answer.strip()))


def test_anls_equals_its_definition():
    for answer, truth in PAIRS:
        similarity = Levenshtein.normalized_similarity(answer.strip().lower(), truth.strip().lower())
        assert anls(answer, [truth]) == pytest.approx(similarity if similarity > 0.5 else 0.0)


def test_anls_takes_the_best_of_several_truths_and_ignores_case():
    assert anls("12,500 won", ["nothing", "12,500 WON"]) == 1.0
    assert anls("12,600 won", ["12,500 won"]) == pytest.approx(0.9)
    assert anls("abcd", ["abxy"]) == 0.0  # exactly half is not enough


def test_anls_refuses_a_bare_string():
    with pytest.raises(ValueError, match="list"):
        anls("a", "a")


def test_exact_match_ignores_only_white_space():
    assert exact_match(" Total 12\n", "Total  12") == 1.0
    assert exact_match("total 12", "Total 12") == 0.0
    assert exact_match("Total12", "Total 12") == 0.0


def test_an_empty_truth():
    assert character_error_rate("", "") == 0.0
    assert character_error_rate("x", "") == 1.0
