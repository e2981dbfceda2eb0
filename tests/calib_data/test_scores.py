"""Scores against their definitions, with edits counted by a plain dynamic program (Wagner and Fischer 1974)."""

import random
import time

import pytest

from calib_data.scores import anls, character_error_rate, exact_match

PAIRS = [
    ("".join(rng.choices("ab 12,가나", k=rng.randint(0, 14))), "".join(rng.choices("ab 12,가나", k=rng.randint(1, 14))))
    for rng in map(random.Random, range(1000))
]


def edits(first, second):
    """Fewest insertions, deletions and substitutions: the whole table, cell by cell."""
    table = [[max(i, j) for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            kept = table[i - 1][j - 1] + (a != b)
            table[i][j] = min(kept, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def test_character_error_rate_equals_its_definition():
    for answer, truth in ((answer.strip(), truth.strip()) for answer, truth in PAIRS if truth.strip()):
        assert character_error_rate(f" {answer}\n", f"{truth} ") == edits(answer, truth) / len(truth)


def test_anls_equals_its_definition():
    for answer, truth in ((answer.strip(), truth.strip()) for answer, truth in PAIRS):
        longest = max(len(answer), len(truth))
        similarity = 1 - edits(answer, truth) / longest if longest else 1.0
        assert anls(f" {answer}\n", [f"{truth} "]) == (similarity if similarity > 0.5 else 0.0)


def test_pages_of_text_are_scored_in_no_time():
    """Two texts of 4000 characters, of which 40 differ: 16 million cells of the table."""
    truth = "".join(random.Random(0).choices("ab 12,가나", k=3998)).join("xx")
    answer = "".join("?" if place % 100 == 50 else char for place, char in enumerate(truth))
    start = time.process_time()
    assert character_error_rate(answer, truth) == 0.01
    assert anls(answer, [truth]) == 0.99
    assert time.process_time() - start < 1


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
