"""Progress on stderr: a bar with rate and time left, or plain lines if stderr is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Sized
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from console.text import shorten_message

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 5.0
_said: set[Hashable] = set()
_hearers: list[Callable[[str], None]] = []


def track(
    items: Iterable[Item], label: str, count: int | None = None, weigh: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Yield the items and show progress on stderr; stdout is only for results.

    count: of items without a length. weigh: how much of the count an item is.
    """
    total = len(items) if isinstance(items, Sized) else count
    assert total is not None
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield from _lines(items, total, label, console, weigh)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task, start, done = bar.add_task(label, total=total, rate=""), time.monotonic(), 0
        for item in items:
            yield item
            done += weigh(item)
            bar.update(task, completed=done, rate=_rate(done / (time.monotonic() - start)))


def say(line: str) -> None:
    """Print one line on stderr."""
    Console(stderr=True, soft_wrap=True, markup=False).print(shorten_message(line), highlight=False)
    for hearer in _hearers:
        hearer(line)


def hear(hearer: Callable[[str], None]) -> None:
    """Have a function take every line that is said from now on: of a process whose stderr nobody reads."""
    _hearers.append(hearer)


def say_once(line: str, about: Hashable = None) -> None:
    """Print one line on stderr, however often a source is opened in this process.

    about: what counts as the same line where lines differ, as those of many pages with one fault.
    """
    about = line if about is None else about
    if about not in _said:
        _said.add(about)
        say(line)


def _lines(
    items: Iterable[Item], total: int, label: str, console: Console, weigh: Callable[[Item], int]
) -> Iterator[Item]:
    start, done = time.monotonic(), 0
    last = start
    for item in items:
        yield item
        done += weigh(item)
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES and done < total:
            rate = done / (now - start)
            left = (total - done) / rate
            console.print(f"{label}: {done}/{total}, {_rate(rate)}, {left:.0f} s left", highlight=False)
            last = now


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
