"""Scores against their definitions, with edits counted by a plain dynamic program (Wagner and Fischer 1974)."""

import random
import time
import unicodedata

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


TRUTH = "합계 12,500원\n커피 café ₩3,000\n\n감사합니다"
LOOKS_THE_SAME = {
    "decomposed": unicodedata.normalize("NFD", TRUTH),
    "windows": TRUTH.replace("\n", "\r\n"),
    "old mac": TRUTH.replace("\n", "\r"),
    "line separators": TRUTH.replace("\n", "\u2028"),
    "next lines": TRUTH.replace("\n", "\x85"),
    "form feeds": TRUTH.replace("\n", "\f") + "\f",
    "non-breaking spaces": TRUTH.replace(" ", "\xa0"),
    "narrow spaces": TRUTH.replace(" ", "\u202f"),
    "ideographic spaces": TRUTH.replace(" ", "\u3000"),
    "tabs": TRUTH.replace(" ", "\t"),
    "Hangul fillers": TRUTH.replace(" ", "\u3164"),
    "spaces that end lines": TRUTH.replace("\n", " \xa0\n"),
    "a byte order mark": "\ufeff" + TRUTH,
    "zero-width spaces": "\u200b".join(TRUTH),
    "soft hyphens": TRUTH.replace("감사", "감\xad사"),
    "word joiners": TRUTH.replace(",", "\u2060,\u2060"),
    "direction marks": "\u200e" + TRUTH.replace("₩", "\u2066₩\u2069"),
    "zero-width inside a syllable": "\u200b".join(unicodedata.normalize("NFD", TRUTH)),
}


@pytest.mark.parametrize("how", LOOKS_THE_SAME)
def test_what_looks_the_same_scores_the_same(how):
    same = LOOKS_THE_SAME[how]
    wrong = TRUTH.replace("500", "600")
    assert same != TRUTH
    for first, second in ((TRUTH, same), (same, TRUTH), (same, same)):
        scores = exact_match(first, second), character_error_rate(first, second), anls(first, [second])
        assert scores == (1.0, 0.0, 1.0)
    assert exact_match(wrong, same) == 0.0
    assert character_error_rate(wrong, same) == character_error_rate(wrong, TRUTH) == 1 / len(TRUTH)
    assert anls(wrong, [same]) == anls(wrong, [TRUTH]) < 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("１２", "12"),  # full-width digits
        ("ㄱㅏ", "가"),  # the jamo of a keyboard
        ("ﬁ", "fi"),
        ("①", "1"),
        ("x²", "x2"),
        ("“a”", '"a"'),
        ("A‑1", "A-1"),  # a non-breaking hyphen
        ("Total", "total"),
        ("a  b", "a b"),
        ("می\u200cخواهم", "میخواهم"),  # a joiner that changes how a word looks
    ],
)
def test_what_looks_different_counts_as_an_edit(answer, truth):
    assert character_error_rate(answer, truth) > 0
    assert answer.lower() == truth.lower() or anls(answer, [truth]) < 1
