"""Limits the reasoning of an answer: `</think>` is forced once a number of tokens is spent.

It is forced in place of an end token, too, so that an answer always comes. A forced token is the next token whatever
the logits are. So drafts, CUDA graphs and rows of a batch need nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from runtime.decoding.sampling import Sampler
    from runtime.reasoning import ReasoningEnd, ReasoningParser


class ThinkingBudget:
    """Ends the reasoning of one answer after a number of tokens. Each answer has its own."""

    def __init__(
        self, tokens: int, ending: ReasoningEnd, parser: ReasoningParser, end_ids: Collection[int] = ()
    ) -> None:
        """Begin an answer.

        tokens: longest reasoning, without the line break that the template writes after it. ending: what the template
        writes between reasoning and answer. parser: of the same answer. end_ids: tokens that end an answer; within the
        reasoning, there would be none.
        """
        self._budget, self._ending, self._parser, self._end_ids = tokens, ending, parser, end_ids
        self._read = 0
        self._start: int | None = None
        self._tokens: tuple[int, ...] = ()  # forced from `_start` on
        self.spent = False
        """Whether the budget ended the reasoning."""

    def limit(self, sampler: Sampler) -> Sampler:
        """A sampler that chooses as `sampler` does where no token is forced.

        Drafts are checked against it like against any sampler.
        """

        def choose(logits: NDArray[np.float32], generated: Sequence[int]) -> int:
            return self._forced(sampler(logits, generated), generated)

        return choose

    def _forced(self, chosen: int, generated: Sequence[int]) -> int:
        """The token that comes next: of the ending, or the chosen one.

        generated: tokens of the answer so far; it only grows from call to call.
        """
        for token in generated[self._read :]:
            self._parser.push(token)
        self._read = len(generated)
        if self._start is None and self._parser.marker is None and self._must_end(chosen):
            self.spent, self._start = self._read >= self._budget, len(generated)
            self._tokens = (() if self._parser.at_line_start else self._ending.line) + self._ending.marker
        if self._start is None or len(generated) >= self._start + len(self._tokens):
            return chosen
        return self._tokens[len(generated) - self._start]

    def _must_end(self, chosen: int) -> bool:
        """Whether the reasoning, which goes on, has to end here. A token that ends it by itself is left alone."""
        spent = self._read >= self._budget or chosen in self._end_ids
        return spent and not self._parser.ends_with(chosen)
