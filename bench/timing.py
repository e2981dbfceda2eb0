"""How a call is timed, and how its times are summed up: a median and the quartiles around it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

WARM_UP = 2  # calls that are not counted: they bind buffers and fill caches
REST = 0.1  # seconds between turns: idle threads spin for a while before they sleep
Runner = TypeVar("Runner")


@dataclass(frozen=True)
class Quartiles:
    """The median of repeated measurements, and the quartiles around it."""

    median: float
    low: float
    """The lower quartile."""
    high: float
    """The upper quartile."""
    count: int
    """Measurements."""

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Quartiles:
        """Of any number of values."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, np.size(values))

    def scaled(self, factor: float) -> Quartiles:
        """In another unit."""
        return Quartiles(factor * self.median, factor * self.low, factor * self.high, self.count)

    def __str__(self) -> str:
        return f"{self.median:z.2f} ({self.low:z.2f}–{self.high:z.2f})"


def timed(
    call: Callable[[], object],
    *,
    seconds: float = 0.4,
    least: int = 5,
    most: int = 200,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> Quartiles:
    """Seconds of a call that returns when its work is done.

    Repeats it until `seconds` have passed, but at least `least` and at most `most` times.
    """
    for _ in range(warm_up):
        call()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = clock()
        call()
        times.append(clock() - start)
    return Quartiles.of(times)


def in_turns(runners: Sequence[Runner], number: int) -> Iterator[Runner]:
    """Yield each runner of a round after a rest; another one begins each round. number: of the round."""
    for place in range(len(runners)):
        time.sleep(REST)
        yield runners[(number + place) % len(runners)]
