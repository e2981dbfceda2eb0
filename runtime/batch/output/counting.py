"""Counts over any number of values, in memory that does not grow with them."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from statistics import median_low

_STEPS = 4096  # numbers that are told apart
_BARS = 8
_TEXTS = 1000  # texts that are counted at the same time
_SAMPLE = 1000  # numbers that a median is taken from


@dataclass(frozen=True)
class Bar:
    """Values from a number up to another."""

    start: int
    """The least of them."""
    end: int | None
    """Less than this; None without an end."""
    count: int
    """How many there are."""


@dataclass(frozen=True)
class Spread:
    """How whole numbers are distributed."""

    count: int
    """How many there are."""
    least: int
    """Smallest one."""
    median: int
    """Half of them are at most this; in whole steps, as the next."""
    high: int
    """95 % of them are at most this."""
    most: int
    """Largest one."""
    step: int
    """Numbers are counted in steps of this: 1, 10, 100, …"""
    bars: list[Bar]
    """Their histogram. The last bar has no end where a few numbers are far above the others."""


class Tally:
    """Counts whole numbers from 0, each for itself, or in steps of 10, 100, … where there are too many of them."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._step = 1
        self._least = self._most = 0

    def add(self, value: int) -> None:
        """Count a number."""
        self._least = min(self._least, value) if self._counts else value
        self._most = max(self._most, value)
        self._counts[value // self._step] += 1
        while len(self._counts) > _STEPS:
            self._step *= 10
            finer, self._counts = self._counts, Counter()
            for place, count in finer.items():
                self._counts[place // 10] += count

    def spread(self) -> Spread | None:
        """Their distribution; None where there are none."""
        if not self._counts:
            return None
        median, high = self._quantile(0.5), self._quantile(0.95)
        return Spread(self._counts.total(), self._least, median, high, self._most, self._step, self._bars())

    def _quantile(self, share: float) -> int:
        """The smallest step that this share of the numbers does not exceed."""
        needed, seen = share * self._counts.total(), 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= needed:
                break
        return place * self._step

    def _bars(self) -> list[Bar]:
        """A few bars of a round width, up to the number that 99 % do not exceed, and one for all above."""
        low, high = self._least, self._quantile(0.99)
        width = self._step
        while high // width - low // width >= _BARS:
            width = width * 5 // 2 if str(width).startswith("2") else width * 2  # 1, 2, 5, 10, 20, …
        counts: Counter[int] = Counter()
        for place, count in self._counts.items():
            counts[min(place * self._step // width, high // width + 1)] += count
        bars = [
            Bar(place * width, (place + 1) * width, counts[place]) for place in range(low // width, high // width + 1)
        ]
        above = counts[high // width + 1]
        return [*bars, Bar(bars[-1].start + width, None, above)] if above else bars


class Frequent:
    """The most frequent of texts (Misra and Gries, 1982).

    Up to 1000 texts have exact counts. With more, a text that comes `missed` times or fewer may be lost.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.missed = 0
        """Counts are too small by at most this."""

    def add(self, text: str) -> None:
        """Count a text."""
        if text in self._counts or len(self._counts) < _TEXTS:
            self._counts[text] = self._counts.get(text, 0) + 1
        else:  # every text loses one, which is no more often than one came: linear in all
            self.missed += 1
            self._counts = {text: count - 1 for text, count in self._counts.items() if count > 1}

    def __contains__(self, text: str) -> bool:
        """Whether it is counted now."""
        return text in self._counts

    @property
    def different(self) -> int | None:
        """How many there are; None for more than are counted."""
        return None if self.missed else len(self._counts)

    def most(self, number: int) -> list[tuple[str, int]]:
        """The most frequent ones with their counts; of those that are equal, the first that came."""
        return sorted(self._counts.items(), key=lambda pair: -pair[1])[:number]


class Numbers:
    """Smallest and largest of numbers, and the median of a random sample of 1000; NaN and infinity are left out."""

    def __init__(self) -> None:
        self.least, self.most = math.inf, -math.inf
        self.count = 0
        self._sample: list[float] = []
        self._random = random.Random(0)  # the same numbers have the same sample

    def add(self, number: float) -> None:
        """Take a number."""
        if not math.isfinite(number):
            return
        self.count += 1
        self.least, self.most = min(self.least, number), max(self.most, number)
        if len(self._sample) < _SAMPLE:
            self._sample.append(number)
        elif (place := self._random.randrange(self.count)) < _SAMPLE:  # each number is in with the same chance
            self._sample[place] = number

    @property
    def sampled(self) -> bool:
        """Whether the median is that of a sample."""
        return self.count > len(self._sample)

    @property
    def median(self) -> float:
        """The lower one of two in the middle."""
        return median_low(self._sample)
