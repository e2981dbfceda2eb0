"""Numbers and bars as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.batch.output.counting import Spread

_SECOND = 1000  # milliseconds
_IN_SECONDS = 10 * _SECOND  # from here on


@dataclass(frozen=True)
class Column:
    """A bar of a histogram."""

    tick: str
    """Where it begins."""
    count: str
    """Number of values, short."""
    height: float
    """Of the highest, 0 to 1."""
    text: str
    """All of it in words."""


@dataclass(frozen=True)
class Histogram:
    """A distribution of whole numbers."""

    unit: str
    """What the numbers count."""
    columns: list[Column]
    """Its bars."""
    caption: str
    """Range, median and 95th percentile in words."""


def token_histogram(spread: Spread) -> Histogram:
    """Tokens of an answer."""
    return _histogram(spread, "tokens", 1)


def time_histogram(spread: Spread) -> Histogram:
    """Time of an answer, in milliseconds, or in seconds where that is easier to read."""
    long = spread.bars[-1].start >= _IN_SECONDS
    return _histogram(spread, "seconds" if long else "milliseconds", _SECOND if long else 1)


def _histogram(spread: Spread, unit: str, one: int) -> Histogram:
    """one: how many of what was counted are one of the unit."""
    highest = max(bar.count for bar in spread.bars)
    columns = []
    for bar in spread.bars:
        start = _exact(bar.start / one)
        until = f"{start} or more" if bar.end is None else f"{start} to less than {_exact(bar.end / one)}"
        tick = _tick(bar.start / one) + ("+" if bar.end is None else "")
        text = f"{until} {unit}: {bar.count:,}"
        columns.append(Column(tick, short_count(bar.count), bar.count / highest, text))
    least, median, high, most = (
        _exact(value / one) for value in (spread.least, spread.median, spread.high, spread.most)
    )
    about = "" if spread.step == 1 else "about "
    span = f"{least} to {most} {unit}; median {about}{median}, 95th percentile {about}{high}."
    return Histogram(unit, columns, span if spread.least < spread.most else f"All have {least} {unit}.")


def _exact(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def _tick(value: float) -> str:
    return f"{value:g}" if value < 10_000 else short_count(round(value))


def short_count(count: int) -> str:
    """A whole number in a few characters: 9999, 48.1k, 1.2M."""
    if count < 10_000:
        return str(count)
    if count < 999_500:  # which are 1M when rounded
        return f"{count / 1000:.3g}k"
    return f"{count / 1_000_000:.3g}M" if count < 999_500_000 else f"{count / 1_000_000:.0f}M"


def percent(part: int, whole: int) -> str:
    """A share with one digit, which is 0 % for none and 100 % for all, and for nothing else."""
    if not part or part == whole:
        return "100 %" if part else "0 %"
    share = 100 * part / whole
    return "< 0.1 %" if share < 0.1 else "> 99.9 %" if share > 99.9 else f"{share:.1f} %"


def number(value: float) -> str:
    """A number of a field: ten digits, all of a whole number."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"
