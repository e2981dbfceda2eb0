"""The rows of one KV cache: which request takes which, what a free row still knows, and which step together."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence as Ordered

    from numpy.typing import NDArray

    from runtime.engine.sequence import Sequence
    from runtime.ort.cache import KVCache

MAX_GAP = 4
"""Idle rows between two running ones that are computed too, rather than reading all weights once more."""
WORTHWHILE = 16
"""Tokens that a free row must share with a prompt to be taken before the lowest one."""
_KEPT_VIEWS = 16  # groups of rows whose bound inputs and outputs are kept


@dataclass
class Row:
    """One row of the KV cache, and the sequence that has it."""

    number: int
    """Its place in the cache."""
    cache: KVCache
    """A view of it alone."""
    sequence: Sequence | None = None
    """The request that it is read for or answers; None for a free row."""
    running: bool = False
    """Whether its prompt is read, so that each step gives it a token."""
    content: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """What its keys and values are of; the first `length` numbers count."""

    @property
    def length(self) -> int:
        """Tokens whose keys and values it holds."""
        return int(self.cache.lengths[0])

    @length.setter
    def length(self, tokens: int) -> None:
        self.cache.lengths[0] = tokens

    def free(self) -> None:
        """Take the sequence away; what was read and generated stays."""
        assert self.sequence is not None
        answer = np.array(self.sequence.generated, np.int64)
        self.content = np.concatenate((self.sequence.content, answer))[: self.length]
        self.sequence, self.running = None, False


class Rows:
    """All rows of a KV cache.

    window: tokens of the smallest window; its buffer keeps no others. None where every buffer keeps all. reuse: whether
    a prompt may begin with keys and values of an earlier one.
    """

    def __init__(self, cache: KVCache, window: int | None, *, reuse: bool) -> None:
        self._cache, self._window, self._reuse = cache, window, reuse
        self._all = [Row(number, cache.row(number)) for number in range(len(cache.lengths))]
        self._views: OrderedDict[tuple[int, int], KVCache] = OrderedDict()

    @property
    def used(self) -> list[Row]:
        """Rows that have a sequence."""
        return [row for row in self._all if row.sequence is not None]

    @property
    def running(self) -> list[Row]:
        """Rows that take part in steps."""
        return [row for row in self._all if row.running]

    def take(self, sequence: Sequence) -> Row | None:
        """Give a sequence the free row that shares most with its prompt, or the lowest one; None without a free one.

        The row then holds the shared tokens only.
        """
        free = [(self._shared(row, sequence.content), row) for row in self._all if row.sequence is None]
        if not free:
            return None
        shared, row = max(free, key=lambda pair: (pair[0] if pair[0] >= WORTHWHILE else 0, -pair[1].number))
        row.sequence, row.content, row.length = sequence, sequence.content, shared
        sequence.cached_tokens = shared
        return row

    def _shared(self, row: Row, content: NDArray[np.int64]) -> int:
        """Tokens of a free row that a prompt can begin with; at least one is left to read, for its logits.

        A row is cut back only where its windows have all its tokens.
        """
        if not self._reuse:
            return 0
        length = row.length
        most = min(length, len(content) - 1)
        different = np.flatnonzero(row.content[:most] != content[:most])
        shared = int(different[0]) if len(different) else most
        return shared if shared == length or not self._has_lost(length) else 0

    def _has_lost(self, length: int) -> bool:
        """Whether a row of `length` tokens has pushed some out of its windows."""
        return self._window is not None and length > self._window

    def groups(self) -> list[tuple[KVCache, list[Row]]]:
        """Running rows in as few calls as pay, each a view of the cache with all its rows, idle ones among them.

        An idle row is written to, behind its tokens. Where its windows are full, that pushes one out: a free row then
        forgets its content, and a row whose prompt is being read stays out of the group.
        """
        running = [row.number for row in self.running]
        if not running:
            return []
        splits = [b for a, b in pairwise(running) if b - a - 1 > MAX_GAP or self._any_disturbed(a + 1, b)]
        groups = []
        for start, stop in zip([running[0], *splits], [*splits, running[-1] + 1], strict=True):
            last = max(number for number in running if number < stop)
            groups.append((self._view(start, last + 1), self._all[start : last + 1]))
        return groups

    def _any_disturbed(self, start: int, stop: int) -> bool:
        return any(row.sequence is not None and self._is_full(row) for row in self._all[start:stop])

    def _is_full(self, row: Row) -> bool:
        """Whether one more token would push one out of a window."""
        return self._window is not None and row.length >= self._window

    def end_step(self, rows: Ordered[Row]) -> None:
        """Take the token back that a step wrote to idle rows."""
        for row in rows:
            if not row.running:
                row.length -= 1
                if self._is_full(row):
                    row.length = 0

    def _view(self, start: int, stop: int) -> KVCache:
        if stop - start == 1:
            return self._all[start].cache
        view = self._views.pop((start, stop), None) or self._cache.rows(start, stop)
        self._views[start, stop] = view
        if len(self._views) > _KEPT_VIEWS:
            self._views.popitem(last=False)
        return view
