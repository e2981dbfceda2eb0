"""How greedy answers end: by themselves or at the limit, how long they are, and whether they repeat themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.compare.result import EndingChanges, Endings
from runtime.compare.statistics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.evaluate import Scored

_SHORTEST_PHRASE, _REPEATS = 2, 3


def in_loop(ids: Sequence[int]) -> bool:
    """Whether an answer ends with a phrase of two tokens or more that is there three times in a row.

    The definition of Holtzman et al. 2020 (arXiv 1904.09751). One token is a phrase of two when it repeats six times.
    """
    longest = len(ids) // _REPEATS
    return any(_repeats(ids, length) for length in range(_SHORTEST_PHRASE, longest + 1))


def _repeats(ids: Sequence[int], length: int) -> bool:
    """Whether the last phrase of `length` tokens repeats: each token equals the one a phrase before it."""
    if ids[-1] != ids[-1 - length]:  # most lengths end here
        return False
    tail = ids[-length * _REPEATS :]
    return tail[length:] == tail[:-length]


def summarize_endings(answers: Sequence[Scored]) -> Endings | None:
    """Sum up one model's answers; None without any."""
    if not answers:
        return None
    return Endings(
        finished=float(np.mean([answer.finished for answer in answers])),
        loops=float(np.mean([in_loop(answer.ids) for answer in answers])),
        tokens=float(np.mean([len(answer.ids) for answer in answers])),
    )


def compare_endings(pairs: Sequence[tuple[Scored, Scored]]) -> EndingChanges | None:
    """A candidate's endings against the baseline's. pairs: answers of both, by document; None without any."""
    if not pairs:
        return None
    finished = [int(after.finished) - int(before.finished) for before, after in pairs]
    loops = [int(in_loop(after.ids)) - int(in_loop(before.ids)) for before, after in pairs]
    lengths = np.array([(len(before.ids) + 1, len(after.ids) + 1) for before, after in pairs])  # the end is a token
    longer = bootstrap(lengths[:, 1] - lengths[:, 0], lengths[:, 0], least=-1.0)
    ended = [not after.finished for before, after in pairs if before.finished]
    return EndingChanges(
        finished=bootstrap(finished, least=-1.0, most=1.0),
        loops=bootstrap(loops, least=-1.0, most=1.0),
        length_ratio=longer._replace(value=1 + longer.value, low=1 + longer.low, high=1 + longer.high),
        unfinished=bootstrap(ended, least=0.0, most=1.0) if ended else None,
    )
