"""Verdicts and findings for numbers known by hand."""

from dataclasses import replace

from runtime.compare.gate import Gates, judge
from runtime.compare.result import EndingChanges, ExactMatch, Layer, Scores
from runtime.compare.statistics import Interval

KL, AGREEMENT = Interval(0.01, 0.005, 0.02), Interval(0.99, 0.98, 1.0)
DIFFERENCES = {
    "anls": Interval(-0.03, -0.05, -0.01),
    "cer": Interval(0.01, -0.01, 0.03),
    "exact_match": Interval(-0.1, -0.2, 0.0),
}
NOTHING = Interval(0.0, 0.0, 0.0)
ENDINGS = EndingChanges(NOTHING, NOTHING, Interval(1.0, 1.0, 1.0), NOTHING)
STRONG = Scores(0.9, 0.02, 0.98)


def judged(gates, differences=DIFFERENCES, baseline=STRONG, layers=(), endings=ENDINGS):
    test = ExactMatch(6, 0, 0.03125) if differences else None
    return judge(gates, KL, AGREEMENT, differences, endings if differences else None, baseline, test, layers)


def test_every_gate_passes_up_to_its_limit():
    assert judged(Gates(max_kl=0.01, max_drop_anls=0.03, min_agreement=0.99)).passed
    for gates, option in (
        (Gates(max_kl=0.0099, max_drop_anls=1), "--max-kl"),
        (Gates(max_drop_anls=0.0299), "--max-drop-anls"),
        (Gates(max_drop_anls=1, min_agreement=0.991), "--min-agreement"),
    ):
        verdict = judged(gates)
        assert not verdict.passed
        (failed,) = [check for check in verdict.checks if not check.passed]
        assert failed.option == option
        assert failed.line.endswith("FAILS")


def test_answers_that_no_longer_end_fail_a_gate_of_their_own():
    """By their share of those that end with the baseline; without any of those nothing can be judged."""
    endings = replace(ENDINGS, unfinished=Interval(0.03, 0.0, 0.1))
    small = {**DIFFERENCES, "anls": Interval(-0.01, -0.02, 0.0)}
    verdict = judged(Gates(), small, endings=endings)
    assert verdict.outcome == "fails"
    assert verdict.checks[1].line == "unfinished answers 0.03000, --max-unfinished 0.02: FAILS"
    assert judged(Gates(max_unfinished=0.03), small, endings=endings).passed
    none_ended = judged(Gates(), small, endings=replace(ENDINGS, unfinished=None))
    assert none_ended.checks[1].line == "unfinished answers: not available, the baseline has no answers that end"
    assert none_ended.passed
    assert judged(Gates(), small, Scores(0, 1, 0.2)).outcome == "not judged"


def test_a_gain_is_no_drop():
    assert judged(Gates(max_drop_anls=0), {**DIFFERENCES, "anls": Interval(0.01, 0.0, 0.02)}).passed


def test_words_for_significant_and_for_noise():
    findings = judged(Gates()).findings
    assert findings == [
        "ANLS changes by -0.0300 (-0.0500 to -0.0100): a significant loss.",
        "CER changes by +0.0100 (-0.0100 to +0.0300): within noise.",
        "Exact match: 6 lost, 0 gained (McNemar p = 0.031): significant.",
    ]
    better = {"anls": Interval(0.03, 0.01, 0.05), "cer": Interval(-0.01, -0.02, -0.005)}
    assert [line.rpartition(": ")[2] for line in judged(Gates(), better).findings[:2]] == ["a significant gain."] * 2


def test_without_answers_nothing_can_fail_or_pass_by_them_and_that_is_said():
    verdict = judged(Gates(), differences=None, baseline=None)
    assert (verdict.outcome, verdict.passed) == ("not judged", False)
    assert (verdict.checks[0].value, verdict.checks[0].passed) == (None, None)
    assert "not available" in verdict.checks[0].line
    assert verdict.findings[0].startswith("The baseline is a reference without answers")
    assert (
        verdict.findings[1]
        == "No gate could be judged, so the candidate does not pass; give --max-kl or --min-agreement."
    )
    assert judged(Gates(max_kl=0.001), differences=None, baseline=None).outcome == "fails"
    assert judged(Gates(max_kl=0.01), differences=None, baseline=None).passed
    assert not judged(Gates(max_drop_anls=None, max_unfinished=None)).passed


def test_a_baseline_that_cannot_read_is_too_weak():
    (finding, *_) = judged(Gates(), baseline=Scores(0, 1, 0.2)).findings
    assert finding.startswith("The baseline is too weak to judge by")
    assert "0.200" in finding


def test_a_weak_baseline_lets_nothing_pass_by_its_answers_but_a_drop_fails_all_the_same():
    weak, small = Scores(0, 1, 0.2), {**DIFFERENCES, "anls": Interval(-0.01, -0.02, 0.0)}
    verdict = judged(Gates(), small, weak)
    assert (verdict.outcome, verdict.passed, verdict.checks[0].passed) == ("not judged", False, None)
    assert verdict.checks[0].line == "ANLS drop 0.01000, --max-drop-anls 0.02: not judged"
    assert judged(Gates(), DIFFERENCES, weak).outcome == "fails"
    assert judged(Gates(max_kl=0.01), small, weak).passed
    assert judged(Gates(), small, Scores(0, 1, 0.5)).passed


def test_suspected_layers_are_named():
    layers = [Layer("good", 4, 0.1, None, None, False), Layer("bad", 4, 1.4, None, None, True)]
    finding = judged(Gates(), layers=layers).findings[-1]
    assert finding.startswith("Layer bad may be damaged: its relative weight error is 1.40")
