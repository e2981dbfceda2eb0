"""What of a difference is more than chance: paired bootstrap intervals and McNemar's test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ROUNDS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_zero_possible(self) -> bool:
        """Whether the interval holds 0: the difference may be chance."""
        return self.low <= 0 <= self.high


def bootstrap(sums: ArrayLike, counts: ArrayLike | None = None) -> Interval:
    """Interval of a sum over documents by a count over documents, both [D]; without counts, of a mean over documents.

    Documents are drawn with replacement (Efron 1979, percentile interval), with everything that belongs to them, so
    differences of two models on the same documents are paired. The draws are the same in every run.
    """
    summed = np.asarray(sums, np.float64)
    counted = np.ones(len(summed)) if counts is None else np.asarray(counts, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(summed), (ROUNDS, len(summed)))
    values = summed[drawn].sum(1) / counted[drawn].sum(1)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(summed.sum() / counted.sum()), float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test (1947): of documents that one of two models gets right, is the split chance.

    1.0 where there is no such document.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))
