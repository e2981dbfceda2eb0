"""Intervals against the normal approximation, McNemar's test against all outcomes of coin tosses."""

import itertools

import numpy as np
import pytest

from runtime.compare.statistics import Interval, _student, bootstrap, mcnemar


def test_an_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).exponential(size=400)
    found = bootstrap(values)
    error = values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found == bootstrap(values)


@pytest.mark.parametrize("documents", [3, 5, 8, 60])
def test_an_interval_covers_the_truth_nineteen_times_of_twenty(documents):
    """As near as one can have it with few documents."""
    draws = np.random.default_rng(2).normal(3, 1, (400, documents))
    covered = [low <= 3 <= high for _, low, high in map(bootstrap, draws)]
    assert (0.85 if documents < 5 else 0.92) < np.mean(covered) < 0.99


def test_one_document_gives_an_interval_to_zero():
    assert bootstrap([-0.08]) == Interval(-0.08, -0.08, 0.0)
    assert bootstrap([0.08]).contains_zero


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042), (1000, 1.962)]
)
def test_students_t_is_that_of_the_tables(freedom, value):
    assert _student(freedom) == pytest.approx(value, rel=0.01)


def test_a_ratio_weighs_documents_by_their_tokens():
    assert bootstrap([10, 0], [1, 9]).value == 1.0
    found = bootstrap([2, 4, 6], [1, 2, 3])
    assert found == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("interval", "possible"), [((0, -1, 1), True), ((0, 0, 0), True), ((2, 1, 3), False), ((-2, -3, -1), False)]
)
def test_zero_in_an_interval(interval, possible):
    assert Interval(*interval).contains_zero == possible


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 1), (1, 5), (4, 4), (8, 2)])
def test_mcnemar_counts_tosses_as_uneven_as_this(lost, gained):
    total = lost + gained
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=total)]
    uneven = [heads for heads in tosses if abs(heads - total / 2) >= abs(lost - total / 2)]
    assert mcnemar(lost, gained) == pytest.approx(len(uneven) / len(tosses))


def test_intervals_of_few_documents_stay_within_what_is_possible():
    """Widened for two or three documents they would not: KL below 0, agreement above 1."""
    kl, agreement = ([0.0001, 0.02, 0.001], [10, 10, 10]), ([10, 9], [10, 10])
    assert bootstrap(*kl).low < 0
    assert bootstrap(*agreement).high > 1
    assert bootstrap(*kl, least=0.0) == bootstrap(*kl)._replace(low=0.0)
    assert bootstrap(*agreement, least=0.0, most=1.0) == bootstrap(*agreement)._replace(high=1.0)
    assert bootstrap([-1e-18, 1e-18], least=0.0).value == 0.0


@pytest.mark.parametrize(
    ("interval", "digits", "shown"),
    [
        ((0.01, -0.02, 0.04), 3, "+0.010 (-0.020 to +0.040)"),
        ((-0.00001, -0.00004, 0.0), 4, "+0.0000 (+0.0000 to +0.0000)"),  # what rounds to 0 has lost its sign
        ((-1.005, -12.5, -0.004), 2, "-1.00 (-12.50 to +0.00)"),
    ],
)
def test_a_difference_has_signs_and_no_negative_zero(interval, digits, shown):
    assert Interval(*interval).with_signs(digits) == shown
