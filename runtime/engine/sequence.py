"""One request in the engine: its prompt, its answer so far, and what its caller is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.decoding.answer_tokens import AnswerTokens
from runtime.decoding.logprobs import token_logprobs
from runtime.decoding.structured import Constraint
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.engine.answer_text import AnswerText
from runtime.engine.pictures import content_ids, open_pictures
from runtime.engine.request import Failed, Finished, Piece

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from console.errors import InputError
    from runtime.decoding.drafts import Drafts
    from runtime.engine.pictures import Picture
    from runtime.engine.request import Deliver, Request
    from runtime.exported import ExportedModel


class Sequence(AnswerTokens):
    """A prompt and the answer that is generated to it.

    Opening it resizes its images and decodes its videos. Only the engine's thread calls its methods, except `cancel`.
    """

    def __init__(
        self,
        model: ExportedModel,
        request: Request,
        deliver: Deliver,
        capacity: int,
        drafts: Drafts | None,
        like: Sequence | None = None,
    ) -> None:
        """Begin. capacity: tokens of a row. like: one of the same prompt, with which it shares the images."""
        inputs = request.inputs
        self.ids = inputs.ids
        """Token ids [T] of the prompt."""
        self.pictures: list[Picture] = open_pictures(model, inputs) if like is None else like.pictures
        """Its images and videos."""
        self.content: NDArray[np.int64] = content_ids(inputs.ids, self.pictures) if like is None else like.content
        """What the prompt says [T]: `runtime.engine.pictures.content_ids`."""
        self.drafts = drafts
        """Counts of its draft tokens; None where none are drafted."""
        self.cached_tokens = 0
        """Tokens of the prompt that a row still had."""
        self.cancelled = False
        """Whether nobody waits for the answer any more."""
        self._request = replace(request, inputs=replace(inputs, images=(), names=(), videos=()))  # frees the images
        self._deliver = deliver
        self._budget = _budget(model, request)
        sampler = request.sampling.sampler()
        if request.grammar is not None:
            constraint = Constraint(request.grammar, model.chat, thinking=request.thinking)
            sampler = constraint.limit(sampler, greedy=request.sampling.temperature == 0)
        if self._budget is not None:
            sampler = self._budget.limit(sampler)
        super().__init__(sampler, min(request.max_new_tokens, capacity - len(inputs.ids)), model.end_ids)
        self._text = AnswerText(model.chat, thinking=request.thinking, stop=request.stop)
        self._reasoning = model.chat.parse_reasoning() if request.thinking else None

    def cancel(self) -> None:
        """Stop answering; any thread may call it. The row is free before the next step."""
        self.cancelled = True

    def take(self, logits: NDArray[np.float32]) -> int:
        """Sample the next token from logits [V], deliver and return it. Once the answer has ended, call `finish`."""
        token = super().take(logits)
        if self.reason == "stop":
            return token
        if self._reasoning is not None:
            self._reasoning.push(token)
        reasoning, text = self._text.push(token)
        top = self._request.top_logprobs
        logprobs = None if top is None else token_logprobs(logits, token, top)
        self._deliver(Piece(reasoning, text, token, logprobs))
        if self._text.stopped:
            self.reason = "stop"
        return token

    def fail(self, error: InputError) -> None:
        """End without an answer."""
        self._deliver(Failed(error))

    def finish(self) -> None:
        """Deliver how the answer ended."""
        assert self.reason is not None
        reasoning, text = self._text.finish()
        tokens = 0 if self._reasoning is None else self._reasoning.tokens
        counts = len(self.ids), self.cached_tokens, len(self.generated), tokens
        spent = self._budget is not None and self._budget.spent
        drafts = self.drafts if self.drafts is not None and self.drafts.possible else None
        self._deliver(Finished(self.reason, reasoning, text, *counts, spent, drafts))


def _budget(model: ExportedModel, request: Request) -> ThinkingBudget | None:
    """The thinking budget of a new answer; None without reasoning or limit."""
    if request.thinking_budget is None or not request.thinking:
        return None
    chat = model.chat
    return ThinkingBudget(request.thinking_budget, chat.end_of_reasoning, chat.parse_reasoning(), model.end_ids)
