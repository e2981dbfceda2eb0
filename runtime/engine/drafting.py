"""Drafts tokens for the row that is alone: with several, a call of the decoder has tokens enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.errors import NoMemoryError
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.drafts import Drafts, give_up_drafts, may_draft, say_without_drafts
from runtime.decoding.speculative import Speculation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.decoding.drafts import DraftTokens
    from runtime.engine.request import Request
    from runtime.engine.rows import Row
    from runtime.engine.sequence import Sequence
    from runtime.exported import ExportedModel
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded


class Drafting:
    """Follows one sequence at a time: the MTP layer has one KV cache.

    It reads a prompt along that is read while its row is alone. A row that others leave alone is followed from then on,
    and what came before is unknown to the MTP layer.
    """

    def __init__(self, model: ExportedModel, tokens: DraftTokens, capacity: int) -> None:
        """Allocate the cache, for `capacity` tokens. tokens: drafted ahead of a call."""
        self._model, self._tokens = model, tokens
        self._cache: KVCache | None = model.drafter.session.new_cache(capacity) if may_draft(tokens) else None
        self._sequence: Sequence | None = None
        self._speculation: Speculation | None = None

    def begin(self, request: Request) -> Drafts | None:
        """Counts of a new answer; None where it has no drafts.

        The policy depends on measured time, and a request with a seed wants the same answer again.
        """
        if isinstance(self._tokens, DraftPolicy) and request.sampling.seed is not None:
            return None
        return Drafts.begin(self._tokens)

    def follow(self, row: Row | None) -> None:
        """Draft for this row from now on; None for no row."""
        sequence = None if row is None else row.sequence
        if sequence is self._sequence:
            return
        self._sequence, self._speculation = sequence, None
        if row is not None and sequence is not None and self._cache is not None and sequence.drafts is not None:
            self._speculation = Speculation(self._model, row.cache, self._cache, sequence.drafts)

    def read(self, decoded: Decoded, tokens: int, following: NDArray[np.float32]) -> None:
        """Read a chunk of the followed prompt along; see `Speculation.read`.

        Raises NoMemoryError for a number of drafts that the user gave; else nothing is drafted any more.
        """
        if self._speculation is None:
            return
        problem = None
        try:
            self._speculation.read(decoded, tokens, following)
        except NoMemoryError as error:
            if not isinstance(self._tokens, DraftPolicy):
                raise
            problem = str(error)
        if problem is not None and isinstance(self._tokens, DraftPolicy):
            self._speculation = self._cache = None
            give_up_drafts(self._model, self._tokens)
            say_without_drafts(problem)

    def step(self) -> bool:
        """Give the followed sequence its next tokens. False where nothing is drafted for it. Raises InputError."""
        sequence = self._sequence
        if sequence is None or self._speculation is None or (sequence.drafts is None or sequence.drafts.disabled):
            return False
        self._speculation.step(sequence)
        return True

    def clear(self) -> None:
        """Forget everything: keys and values may be NaN."""
        self.follow(None)
        if self._cache is not None:
            self._model.drafter.session.clear(self._cache)
