"""Ends a text at the first of several stop strings, however its pieces divide them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Searches one text, which comes in pieces, for stop strings.

    The text ends before the stop string that is complete first; of several that are complete at the same character,
    before the longest. So the result does not depend on how the text is divided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Begin a text. Raises InputError for an empty stop string."""
        if "" in stop:
            raise InputError("stop: has an empty text; leave it out")
        self._stop = tuple(stop)
        self._held = ""
        self.found = False
        """Whether the text has ended."""

    def push(self, piece: str) -> str:
        """Text that can be shown: without a stop string, and without what may begin one."""
        if self.found:
            return ""
        text, self._held = self._held + piece, ""
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self.found = True
            return text[: min(ends)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Text that was held back, where no stop string was found."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that may begin a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[len(text) - length :])), 0)
