"""How many tokens to draft ahead of a call: what gives the most tokens a second, by the time that calls took so far.

Every call gives tokens, so no call is made to measure alone. At first, plain steps, one draft and three take turns.
Then the best number is used, and now and then another is tried again: acceptance differs from text to text.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MOST = 3  # drafts that are ever tried
_TURNS = 4  # calls of each kind in a trial
_RECENT = 8  # calls of a kind whose median is its cost: one that was held up does not count
_OUTCOMES = 16  # drafts of a place whose acceptance counts
_SHARE = 0.02  # of the time of all calls that trying may lose


class DraftPolicy:
    """Chooses numbers of drafts for a loaded model, from its calls in all answers: `choose`, then `observe`.

    given_up: drafts do not pay here, even if all were accepted, or cannot be made; it stays so.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._seconds: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(MOST + 1)]
        self._outcomes: list[deque[bool]] = [deque(maxlen=_OUTCOMES) for _ in range(MOST)]
        self._trial = deque([0, 1, 0, MOST] * _TURNS)  # in turns: whatever else the machine does slows all alike
        self._next = 1  # number of drafts of the next trial
        self._lost = 0.0  # seconds in this trial, against the best choice
        self._pause = 0.0  # seconds until the next

    def choose(self, most: int) -> int:
        """Number of drafts of the next call, at most so many."""
        if self.given_up:
            return 0
        return min(self._trial[0] if self._trial else self._best(), most)

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Learn from a call: how many of its drafts were accepted, and what drafting and checking them took."""
        self._seconds[drafts].append(seconds)
        for place in range(min(accepted + 1, drafts)):
            self._outcomes[place].append(place < accepted)
        if self.given_up:
            return
        if not self._trial:
            self._pause -= seconds
            if self._pause <= 0:
                self._trial.extend([0, self._next] * _TURNS)
                self._next = self._next % MOST + 1
        elif drafts == self._trial[0]:  # it was no fewer, as at the end of an answer
            self._trial.popleft()
            self._lost += seconds - (accepted + 1) / max(self._rates().values())
            if not self._trial:
                self._end_trial()

    def _end_trial(self) -> None:
        self._pause, self._lost = max(self._lost, self._cost(0)) / _SHARE, 0.0
        # The fastest call of a kind: one whose drafts were all accepted, so that nothing was taken back.
        step = self._cost(0, min)
        self.given_up = all(self._cost(drafts, min) >= (drafts + 1) * step for drafts in range(1, MOST + 1))

    def _best(self) -> int:
        """Of equals, the fewest."""
        rates = self._rates()
        return max(rates, key=lambda drafts: rates[drafts])

    def _rates(self) -> dict[int, float]:
        """Expected tokens a second by number of drafts, of those whose cost is known."""
        rates, tokens, reached = {}, 1.0, 1.0
        for drafts in range(MOST + 1):
            if drafts:
                reached *= _acceptance(self._outcomes[drafts - 1])
                tokens += reached
            if self._known(drafts):
                rates[drafts] = tokens / self._cost(drafts)
        return rates

    def _known(self, drafts: int) -> bool:
        return bool(self._seconds[drafts]) or (drafts > 1 and all(self._seconds[n] for n in (1, MOST)))

    def _cost(self, drafts: int, of: Callable[[Iterable[float]], float] = median) -> float:
        """Seconds of a call; of a number that was never tried, on the line through one and most."""
        if seconds := self._seconds[drafts]:
            return of(seconds)
        one, most = self._cost(1, of), self._cost(MOST, of)
        return one + (most - one) * (drafts - 1) / (MOST - 1)


def _acceptance(outcomes: Collection[bool]) -> float:
    """Probability that a draft is accepted, by the rule of succession: one half where nothing is known."""
    return (sum(outcomes) + 1) / (len(outcomes) + 2)
