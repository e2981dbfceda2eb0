"""What is measured: a figure with its spread, and how a call is timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 2  # calls before those that count


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median, and the quartiles around it, of `count` calls after a warm-up."""

    median: float
    low: float
    high: float
    count: int


def timed(
    call: Callable[[], object], *, seconds: float = 0.4, least: int = 5, most: int = 200, warm_up: int = WARM_UP
) -> Timing:
    """Time a call that returns when its work is done, for so many seconds, but `least` to `most` times."""
    for _ in range(warm_up):
        call()
    taken: list[float] = []
    while len(taken) < least or (sum(taken) < seconds and len(taken) < most):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    low, median, high = np.quantile(taken, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high, len(taken))


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float | str
    unit: str = ""
    low: float | None = None
    """Lower quartile; None for what was measured once."""
    high: float | None = None
    count: int = 1
    share: float | None = None
    """Of the ceiling that the stage `card` measured: of the copy bandwidth, or of the matrix product's rate."""
    note: str = ""

    @classmethod
    def of(cls, name: str, timing: Timing, unit: str = "ms", *, share: float | None = None, note: str = "") -> Figure:
        """Seconds of a call as `ms` or `us`."""
        scale = {"ms": 1e3, "us": 1e6}[unit]
        low, high = timing.low * scale, timing.high * scale
        return cls(name, timing.median * scale, unit, low, high, timing.count, share, note)

    @classmethod
    def rate(
        cls, name: str, timing: Timing, work: float, unit: str, *, share: float | None = None, note: str = ""
    ) -> Figure:
        """Work that a call does, by the second: bytes, operations or tokens."""
        low, high = work / timing.high, work / timing.low
        return cls(name, work / timing.median, unit, low, high, timing.count, share, note)
