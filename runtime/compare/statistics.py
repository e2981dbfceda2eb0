"""Statistics over documents: bootstrap confidence intervals, McNemar's test, means by token position."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
DRAWN = 50  # resamples in memory at a time
LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_STUDENT = (12.706, 4.303)


class Interval(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether the interval contains 0: the difference is not significant."""
        return self.low <= 0 <= self.high

    def with_signs(self, digits: int) -> str:
        """A difference in one line, such as "+0.010 (-0.020 to +0.040)"; what rounds to 0 is never -0."""
        value, low, high = (f"{round(number, digits) + 0.0:+.{digits}f}" for number in self)
        return f"{value} ({low} to {high})"


def bootstrap(
    sums: ArrayLike, counts: ArrayLike | None = None, *, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """Confidence interval of sum(sums) / sum(counts), both per document, [D]; counts default to 1, for a mean.

    Documents are resampled with replacement (Efron 1979), each with all of its values, so differences of two models on
    the same documents are paired. Every run draws the same resamples. Percentiles of few documents are too narrow: they
    are moved away from the value by t / z sqrt(D / (D - 1)) (Hesterberg 2015, expanded percentile interval), but not
    beyond `least` and `most`, the range of the quantity. One document has no spread: its interval reaches to 0.
    """
    summed = np.asarray(sums, np.float64)
    counted = np.ones(len(summed)) if counts is None else np.asarray(counts, np.float64)
    value = float(summed.sum() / counted.sum())
    if len(summed) == 1:
        return Interval(value, min(value, 0.0), max(value, 0.0))
    generator, parts = np.random.default_rng(0), []
    for _ in range(0, RESAMPLES, DRAWN):
        drawn = generator.integers(0, len(summed), (DRAWN, len(summed)))
        with np.errstate(invalid="ignore"):  # a resample may hold only documents with a count of 0
            parts.append(summed[drawn].sum(1) / counted[drawn].sum(1))
    values = np.concatenate(parts)
    low, high = np.quantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    widening = _student(len(summed) - 1) / _Z * math.sqrt(len(summed) / (len(summed) - 1))
    low, high = (value + widening * (float(end) - value) for end in (low, high))
    return Interval(value, max(low, min(least, value)), min(high, max(most, value)))


def _student(freedom: int) -> float:
    """The 97.5th percentile of Student's t (Abramowitz and Stegun 26.7.5; the first two from their table 26.10)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = _Z, freedom
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + sum(term / n**power for power, term in enumerate(terms, 1)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947).

    only_first, only_second: documents that only one of two models answers correctly. 1.0 without such documents.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))


def mean_by_position(values: Sequence[Sequence[float]], width: int = 1) -> NDArray[np.float64]:
    """Mean at each position over the documents that reach it; `width` positions share one mean."""
    bins = np.concatenate([np.arange(len(document)) // width for document in values])
    means: NDArray[np.float64] = np.bincount(bins, np.concatenate(values)) / np.bincount(bins)
    return means
