"""Continuous batching: requests come and go between the steps of all running answers (Yu et al. 2022, Orca).

A prompt is read one call at a time between steps, so a long one delays the other answers by one call a step at most.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError
from runtime.decoding.forward import NotFiniteError
from runtime.engine.drafting import Drafting
from runtime.engine.pictures import CACHE_BYTES, VisionCache
from runtime.engine.read_prompt import read_prompt
from runtime.engine.rows import Rows
from runtime.engine.sequence import Sequence
from runtime.sizes import buffer_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from runtime.decoding.drafts import DraftTokens
    from runtime.engine.cache_plan import CachePlan
    from runtime.engine.request import Deliver, Request
    from runtime.engine.rows import Row
    from runtime.exported import ExportedModel
    from runtime.ort.cache import KVCache
    from runtime.sizes import Chunking


class Engine:
    """Answers many requests with one model and one KV cache.

    One thread calls `turn`; any thread may call `submit` and cancel what it returns.
    """

    def __init__(
        self, model: ExportedModel, plan: CachePlan, draft_tokens: DraftTokens = 0, picture_bytes: int = CACHE_BYTES
    ) -> None:
        """Allocate the KV cache.

        draft_tokens: drafted ahead of a call while one row is alone. picture_bytes: of encoded images that are kept for
        later requests.
        """
        self.plan = plan
        """Rows and tokens of the KV cache."""
        self.vision = VisionCache(model, picture_bytes)
        """Encoded images."""
        self._model = model
        windows = buffer_limits(model.manifest.text.windows, model.target.kv_layout)
        window = min((limit for limit in windows if limit is not None), default=None)
        # An int8 cache has rounded keys; a prompt that is read at once sees its own before rounding.
        self._exact_keys = model.target.kv_dtype != "int8"
        self._rows = Rows(model.decoder.new_cache(plan.context, plan.rows), window, reuse=self._exact_keys)
        self._drafting = Drafting(model, draft_tokens, plan.context)
        self._waiting: deque[Sequence] = deque()
        self._reading: tuple[Row, Iterator[NDArray[np.float32] | None]] | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that have a request."""
        return len(self._rows.used)

    def submit(self, request: Request, deliver: Deliver, like: Sequence | None = None) -> Sequence:
        """Queue a request. Raises InputError for a prompt that fills a row, and for an image that cannot be used.

        It resizes images, up to 100 ms a page, and decodes videos, up to minutes, in the caller's thread. like: an
        answer to the same prompt, which has its images already.
        """
        tokens, context = len(request.inputs.ids), self.plan.context
        if tokens >= context:
            raise InputError(f"prompt: {tokens} tokens, but prompt and answer may have {context}; shorten it")
        sequence = Sequence(self._model, request, deliver, context, self._drafting.begin(request), like)
        self._waiting.append(sequence)
        return sequence

    def turn(self) -> bool:
        """Admit, read one part of a prompt, and make one step of all running answers. False where nothing is left."""
        self._drop_cancelled()
        self._admit()
        alone = self._alone()
        self._drafting.follow(alone)
        self._read()
        if alone is None or not self._draft(alone):
            for cache, rows in self._rows.groups():
                self._step(cache, rows)
        return bool(self._waiting or self._rows.used)

    def fail_all(self, error: InputError) -> None:
        """End every request without an answer."""
        self.fail_waiting(error)
        for row in self._rows.used:
            self._fail(row, error)

    def fail_waiting(self, error: InputError) -> None:
        """End the requests of the queue without an answer; any thread may call it."""
        with suppress(IndexError):  # several may, at the same time
            while True:
                self._waiting.popleft().fail(error)

    def _drop_cancelled(self) -> None:
        for row in self._rows.used:
            if row.sequence is not None and row.sequence.cancelled:
                self._free(row)
        for sequence in tuple(self._waiting):  # at once: it holds its images
            if sequence.cancelled:
                self._waiting.remove(sequence)

    def _admit(self) -> None:
        """Give the first request of the queue a row, where no other prompt is being read."""
        if self._reading is None and self._waiting and (row := self._rows.take(self._waiting[0])):
            self._waiting.popleft()
            self._reading = row, read_prompt(self._model, self.vision, row, self._chunking, self._drafting.read)

    def _chunking(self) -> Chunking:
        chunking = self._model.chunking
        return chunking.between_steps() if self._exact_keys and self._rows.running else chunking

    def _alone(self) -> Row | None:
        """The only row in use, where none will be taken next to it."""
        used = self._rows.used
        return used[0] if len(used) == 1 and (self.plan.rows == 1 or not self._waiting) else None

    def _read(self) -> None:
        """Read one part of a prompt; after the last, sample the first token."""
        if self._reading is None:
            return
        row, parts = self._reading
        try:
            logits = next(parts)
        except InputError as error:
            self._fail(row, error)
            return
        if logits is not None:
            self._reading, row.running = None, True
            self._sample(row, logits)

    def _draft(self, row: Row) -> bool:
        """Give a row that is alone its next tokens, drafts among them. False where nothing is drafted for it."""
        if not row.running or row.sequence is None:
            return False
        try:
            drafted = self._drafting.step()
        except InputError as error:
            self._fail(row, error)
            return True
        if row.sequence.ended:
            self._end(row)
        return drafted

    def _step(self, cache: KVCache, rows: list[Row]) -> None:
        """Give every running row of a group its next token."""
        running = [place for place, row in enumerate(rows) if row.running]
        sequences = [row.sequence for row in rows if row.running and row.sequence is not None]
        last = [sequence.generated[-1] for sequence in sequences]
        embeds = np.zeros((len(rows), 1, self._model.manifest.text.hidden_size), np.float32)
        embeds[running, 0] = self._model.embed_tokens(np.array(last))
        try:
            logits = self._model.decoder.run(cache, embeds, np.zeros((len(rows), 1), np.int64)).logits[:, 0]
        except InputError as error:
            for place in running:
                self._fail(rows[place], error)
            return
        self._rows.end_step(rows)
        for drafts in (sequence.drafts for sequence in sequences):
            if drafts is not None:
                drafts.calls += 1  # without any: others run
        finite = np.isfinite(logits.max(axis=1))
        for place in running:
            if finite[place]:
                self._sample(rows[place], logits[place])
            else:
                self._fail(rows[place], NotFiniteError(self._model))

    def _sample(self, row: Row, logits: NDArray[np.float32]) -> None:
        assert row.sequence is not None
        try:
            row.sequence.take(logits)
        except InputError as error:  # no token fits the grammar
            self._fail(row, error)
            return
        if row.sequence.ended:
            self._end(row)

    def _end(self, row: Row) -> None:
        assert row.sequence is not None
        row.sequence.finish()
        self._free(row)

    def _fail(self, row: Row, error: InputError) -> None:
        assert row.sequence is not None
        row.sequence.fail(error)
        self._free(row)
        if isinstance(error, NotFiniteError):
            self._model.decoder.clear(row.cache)
            self._drafting.clear()

    def _free(self, row: Row) -> None:
        if self._reading is not None and self._reading[0] is row:
            self._reading = None
        row.free()
