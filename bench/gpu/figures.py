"""Measured figures: the rows of all tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.timing import Quartiles


@dataclass(frozen=True)
class Figure:
    """One row of a table."""

    name: str
    value: float | str
    unit: str = ""
    low: float | None = None
    """Lower quartile; None for a single measurement."""
    high: float | None = None
    """Upper quartile."""
    count: int = 1
    """Measurements."""
    share: float | None = None
    """Share of a ceiling that the stage `hardware` measured: the copy bandwidth or the rate of matrix products."""
    note: str = ""

    @classmethod
    def of(
        cls, name: str, quartiles: Quartiles, unit: str = "ms", *, share: float | None = None, note: str = ""
    ) -> Figure:
        """Quartiles in a unit; for `ms` and `us` they are given in seconds."""
        shown = quartiles.scaled({"ms": 1e3, "us": 1e6}.get(unit, 1))
        return cls(name, shown.median, unit, shown.low, shown.high, shown.count, share, note)

    @classmethod
    def rate(
        cls, name: str, seconds: Quartiles, work: float, unit: str, *, share: float | None = None, note: str = ""
    ) -> Figure:
        """Rate of a call that does `work`: bytes, operations or tokens a second."""
        low, high = work / seconds.high, work / seconds.low
        return cls(name, work / seconds.median, unit, low, high, seconds.count, share, note)
