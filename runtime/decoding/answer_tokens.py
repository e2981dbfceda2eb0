"""The tokens of an answer while they come, whatever calls give their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray

    from runtime.decoding.sampling import Sampler


class AnswerTokens:
    """An answer to which `take` adds token after token until it has ended.

    limit: its longest length, 1 or more. end_ids: tokens that end it, and are no part of it.
    """

    def __init__(self, sampler: Sampler, limit: int, end_ids: Collection[int]) -> None:
        self.generated: list[int] = []
        """Its tokens."""
        self.reason: Literal["stop", "length"] | None = None
        """Why it has ended: by an end token, or at its limit; None before."""
        self._sampler, self._limit, self._end_ids = sampler, limit, end_ids

    @property
    def ended(self) -> bool:
        """Whether it takes no more tokens."""
        return self.reason is not None

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self._limit - len(self.generated)

    def take(self, logits: NDArray[np.float32]) -> int:
        """Sample the next token from logits [V]; returns it. Not to be called once it has ended."""
        token = self._sampler(logits, self.generated)
        if token in self._end_ids:
            self.reason = "stop"
            return token
        self.generated.append(token)
        if len(self.generated) == self._limit:
            self.reason = "length"
        return token
