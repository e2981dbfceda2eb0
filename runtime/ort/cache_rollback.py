"""KV-cache rollback: remove rejected draft tokens, and restore the rows that they pushed out of sliding windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runtime.ort import graph_io
from runtime.ort.buffer import Buffer
from runtime.ort.device import HOST
from runtime.ort.out_of_memory import report_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnxruntime as ort

    from runtime.ort.cache import KVCache


class SavedRows(NamedTuple):
    """Rows that the next tokens push out of the sliding windows."""

    first: int
    """Position of the first row."""
    rows: list[Buffer]
    """Its rows and the following ones, for each window buffer in turn."""


class CacheRollback:
    """Removes the last tokens from a cache of one sequence: `save` before they are added, `roll_back` after.

    session: the graph that `export.rewind` makes; None for layers without windows, where a smaller length is enough.
    windows: window of each layer, None for a global layer.
    """

    def __init__(self, session: ort.InferenceSession | None, windows: Sequence[int | None]) -> None:
        self._session = session
        layers = len(windows)
        names = zip(
            graph_io.past_names(layers), graph_io.kept_names(layers), graph_io.present_names(layers), strict=True
        )
        self._names = [(i, *three) for i, three in enumerate(names) if windows[i // 2] is not None]
        self.window = next((window for window in windows if window is not None), None)
        """Tokens in a sliding window; None without one."""
        self._numbers = [Buffer.empty((1,), "int64", HOST) for _ in range(3)]

    def save(self, cache: KVCache, tokens: int) -> SavedRows:
        """Copy the rows that `tokens` more will push out of the windows."""
        length = int(cache.lengths[0])
        first = self._first_row(length)
        count = self._first_row(length + tokens) - first
        saved = []
        if count:
            buffers = [cache.buffers[i] for i, *_ in self._names]
            with report_out_of_memory(f"the window rows that {tokens} draft tokens push out", "give --draft-tokens 0"):
                saved = [Buffer.empty((*b.shape[:2], count, b.shape[3]), b.dtype, b.device) for b in buffers]
                self._run(cache, buffers, saved, (0, 0, count))
        return SavedRows(first, saved)

    def roll_back(self, cache: KVCache, saved: SavedRows, tokens: int) -> None:
        """Remove the last `tokens` of those that were added since rows were saved."""
        length = int(cache.lengths[0])
        cache.lengths[0] = length - tokens
        restored = self._first_row(length) - self._first_row(length - tokens)
        if restored:
            assert self.window is not None
            start = self._first_row(length - tokens) - saved.first
            buffers = [cache.buffers[i] for i, *_ in self._names]
            self._run(cache, saved.rows, buffers, (start, start + restored, self.window - restored))

    def _first_row(self, length: int) -> int:
        """Position of the first token that the windows hold."""
        return 0 if self.window is None else max(0, length - self.window)

    def _run(self, cache: KVCache, saved: list[Buffer], outputs: list[Buffer], numbers: tuple[int, int, int]) -> None:
        """Write saved rows [start, stop), then the cache's own first rows; numbers: start, stop, how many own rows."""
        assert self._session is not None
        binding = self._session.io_binding()
        names = (graph_io.REWIND_START, graph_io.REWIND_STOP, graph_io.REWIND_ROWS)
        for name, buffer, number in zip(names, self._numbers, numbers, strict=True):
            buffer.write(np.array([number]))
            buffer.bind_input(binding, name)
        for (i, past_name, kept_name, present_name), rows, output in zip(self._names, saved, outputs, strict=True):
            cache.buffers[i].bind_input(binding, past_name)
            rows.bind_input(binding, kept_name)
            output.bind_output(binding, present_name)
        self._session.run_with_iobinding(binding)
