"""What of a difference is more than chance: paired bootstrap intervals and McNemar's test."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ROUNDS = 2000
LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_STUDENT = (12.706, 4.303)


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_zero_possible(self) -> bool:
        """Whether the interval holds 0: the difference may be chance."""
        return self.low <= 0 <= self.high


def bootstrap(
    sums: ArrayLike, counts: ArrayLike | None = None, *, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """Interval of a sum over documents by a count over documents, both [D]; without counts, of a mean over documents.

    Documents are drawn with replacement (Efron 1979), with everything that belongs to them, so differences of two
    models on the same documents are paired. The draws are the same in every run. Percentiles of few documents are too
    narrow: they are moved out from the value by t / z sqrt(D / (D - 1)) (Hesterberg 2015, expanded percentile
    interval), but not beyond what is possible at least and at most. One document tells nothing of others: its interval
    reaches to 0.
    """
    summed = np.asarray(sums, np.float64)
    counted = np.ones(len(summed)) if counts is None else np.asarray(counts, np.float64)
    value = float(summed.sum() / counted.sum())
    if len(summed) == 1:
        return Interval(value, min(value, 0.0), max(value, 0.0))
    drawn = np.random.default_rng(0).integers(0, len(summed), (ROUNDS, len(summed)))
    with np.errstate(invalid="ignore"):  # documents that have nothing to count may be drawn alone
        values = summed[drawn].sum(1) / counted[drawn].sum(1)
    low, high = np.quantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = _student(len(summed) - 1) / _Z * math.sqrt(len(summed) / (len(summed) - 1))
    low, high = (value + wider * (float(end) - value) for end in (low, high))
    return Interval(value, max(low, min(least, value)), min(high, max(most, value)))


def _student(freedom: int) -> float:
    """The 97.5th percentile of Student's t (Abramowitz and Stegun 26.7.5; its first two from their table 26.10)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = _Z, freedom
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + sum(term / n**power for power, term in enumerate(terms, 1)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test (1947): of documents that one of two models gets right, is the split chance.

    1.0 where there is no such document.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))
