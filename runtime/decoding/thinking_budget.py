"""Limits the reasoning of an answer: `</think>` is forced once a number of tokens is spent.

A forced token is the next token whatever the logits are. So drafts, CUDA graphs and rows of a batch need nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.decoding.sampling import Sampler
    from runtime.reasoning import ReasoningParser


class ThinkingBudget:
    """Ends the reasoning of one answer after a number of tokens. Each answer has its own."""

    def __init__(self, tokens: int, ending: Sequence[int], parser: ReasoningParser) -> None:
        """Begin an answer.

        tokens: longest reasoning. ending: what the chat template writes between reasoning and answer, as token ids.
        parser: of the same answer.
        """
        self._budget, self._ending, self._parser = tokens, ending, parser
        self._read = 0
        self._start: int | None = None
        self.spent = False
        """Whether the budget ended the reasoning."""

    def forced(self, generated: Sequence[int]) -> int | None:
        """The token that must come next; None where the sampler chooses.

        generated: tokens of the answer so far; it only grows from call to call.
        """
        for token in generated[self._read :]:
            self._parser.push(token)
        self._read = len(generated)
        if not self.spent and self._parser.marker is None and len(generated) >= self._budget:
            self.spent, self._start = True, len(generated)
        if self._start is None or len(generated) >= self._start + len(self._ending):
            return None
        return self._ending[len(generated) - self._start]

    def limit(self, sampler: Sampler) -> Sampler:
        """A sampler that chooses as `sampler` does where no token is forced.

        Drafts are checked against it like against any sampler.
        """
        return lambda logits, generated: (
            sampler(logits, generated) if (token := self.forced(generated)) is None else token
        )
