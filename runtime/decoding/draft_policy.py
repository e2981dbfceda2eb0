"""Chooses the number of draft tokens of each decoder call: the number with the most tokens a second so far.

Every call gives tokens, so no call only measures. At first calls with 0, 1 and 3 draft tokens alternate. Then the best
number is used, and from time to time another is tried again: acceptance differs from text to text.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MAX_DRAFTS = 3  # draft tokens of a call, at most
_TURNS = 4  # calls with each number in a trial
_RECENT = 8  # calls whose median time is the cost of a number: one slow call does not count
_OUTCOMES = 16  # recent drafts at a position that its acceptance is counted over
_SHARE = 0.02  # share of the time that trials may lose


class DraftPolicy:
    """Learns from all answers of one model: `choose` before each call, `observe` after it."""

    def __init__(self) -> None:
        self.disabled = False
        """Set for good where drafting is slower even if every draft is accepted, or where it has no memory."""
        self._seconds: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(MAX_DRAFTS + 1)]
        self._outcomes: list[deque[bool]] = [deque(maxlen=_OUTCOMES) for _ in range(MAX_DRAFTS)]
        self._trial = deque([0, 1, 0, MAX_DRAFTS] * _TURNS)  # alternating: other load on the machine slows all alike
        self._next = 1  # draft tokens of the next trial
        self._lost = 0.0  # seconds that this trial lost against the best choice
        self._pause = 0.0  # seconds until the next trial

    def choose(self, most: int) -> int:
        """Choose the number of draft tokens of the next call, at most `most`."""
        if self.disabled:
            return 0
        return min(self._trial[0] if self._trial else self._best(), most)

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Learn from a call: its draft tokens, how many were accepted, and the seconds to draft and check them."""
        self._seconds[drafts].append(seconds)
        for place in range(min(accepted + 1, drafts)):
            self._outcomes[place].append(place < accepted)
        if self.disabled:
            return
        if not self._trial:
            self._pause -= seconds
            if self._pause <= 0:
                self._trial.extend([0, self._next] * _TURNS)
                self._next = self._next % MAX_DRAFTS + 1
        elif drafts == self._trial[0]:  # fewer are drafted at the end of an answer
            self._trial.popleft()
            self._lost += seconds - (accepted + 1) / max(self._rates().values())
            if not self._trial:
                self._end_trial()

    def _end_trial(self) -> None:
        self._pause, self._lost = max(self._lost, self._cost(0)) / _SHARE, 0.0
        # The fastest call of each number: one whose drafts were all accepted, without a rollback.
        step = self._cost(0, min)
        self.disabled = all(self._cost(drafts, min) >= (drafts + 1) * step for drafts in range(1, MAX_DRAFTS + 1))

    def _best(self) -> int:
        """The number with the highest rate, the smallest of equals."""
        rates = self._rates()
        return max(rates, key=lambda drafts: rates[drafts])

    def _rates(self) -> dict[int, float]:
        """Expected tokens a second for each number of draft tokens whose cost is known."""
        rates, tokens, reached = {}, 1.0, 1.0
        for drafts in range(MAX_DRAFTS + 1):
            if drafts:
                reached *= _acceptance(self._outcomes[drafts - 1])
                tokens += reached
            if self._known(drafts):
                rates[drafts] = tokens / self._cost(drafts)
        return rates

    def _known(self, drafts: int) -> bool:
        return bool(self._seconds[drafts]) or (drafts > 1 and all(self._seconds[n] for n in (1, MAX_DRAFTS)))

    def _cost(self, drafts: int, statistic: Callable[[Iterable[float]], float] = median) -> float:
        """Seconds of a call with `drafts` draft tokens; interpolated where it was never tried."""
        if seconds := self._seconds[drafts]:
            return statistic(seconds)
        one, most = self._cost(1, statistic), self._cost(MAX_DRAFTS, statistic)
        return one + (most - one) * (drafts - 1) / (MAX_DRAFTS - 1)


def _acceptance(outcomes: Collection[bool]) -> float:
    """Probability that a draft is accepted, by Laplace's rule of succession: one half without outcomes."""
    return (sum(outcomes) + 1) / (len(outcomes) + 2)
