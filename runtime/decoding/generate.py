"""Autoregressive generation: prefill the KV cache, then sample token after token, with or without draft tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from console.errors import NoMemoryError
from runtime.decoding.answer_tokens import AnswerTokens
from runtime.decoding.drafts import give_up_drafts, say_without_drafts
from runtime.decoding.forward import decode, prefill, prefill_chunks
from runtime.decoding.speculative import Speculation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.decoding.drafts import Drafts
    from runtime.decoding.sampling import Sampler
    from runtime.exported import ExportedModel
    from runtime.prompt import Prompt, PromptInputs


def generate(
    model: ExportedModel, prompt: Prompt, sampler: Sampler, max_new_tokens: int, drafts: Drafts | None = None
) -> Iterator[int]:
    """Yield the tokens of an answer as they come, without the end token, at most what the context has capacity for.

    drafts: generate with speculative decoding. The tokens are the same, except for near ties; see
    `runtime.decoding.speculative`.
    """
    answer = AnswerTokens(sampler, token_limit(model, prompt, max_new_tokens), model.end_ids)
    calls = _step_by_step(model, prompt, answer)
    if drafts is not None:
        calls = _with_fallback(model, _speculate(model, prompt, answer, drafts), calls, drafts)
    given = 0
    for _ in calls:
        yield from answer.generated[given:]
        given = len(answer.generated)


def context_left(model: ExportedModel, prompt: Prompt | PromptInputs) -> int:
    """Tokens of the context that a prompt leaves for its answer."""
    return model.manifest.text.context - len(prompt.ids)


def token_limit(model: ExportedModel, prompt: Prompt | PromptInputs, max_new_tokens: int) -> int:
    """Largest number of tokens of an answer: `max_new_tokens`, or what the context has left."""
    return min(max_new_tokens, context_left(model, prompt))


def _step_by_step(model: ExportedModel, prompt: Prompt, answer: AnswerTokens) -> Iterator[None]:
    """Add tokens to an answer until it has ended, one decoder call each. Yields after each call."""
    with model.decoder.borrow_cache(len(prompt.ids) + answer.left) as cache:
        answer.take(prefill(model, cache, prompt))
        yield
        while not answer.ended:
            embeds = model.embed_tokens(np.array(answer.generated[-1:]))
            answer.take(decode(model, cache, embeds, np.array([0])).logits[0, 0])
            yield


def _speculate(model: ExportedModel, prompt: Prompt, answer: AnswerTokens, drafts: Drafts) -> Iterator[None]:
    """Add tokens to an answer until it has ended, some with each decoder call. Yields after each call.

    Both caches are filled before the first token, so that a lack of memory is known by then.
    """
    capacity, read = len(prompt.ids) + answer.left, 0
    with model.decoder.borrow_cache(capacity) as cache, model.drafter.session.borrow_cache(capacity) as mtp_cache:
        speculation = Speculation(model, cache, mtp_cache, drafts)
        for decoded in prefill_chunks(model, cache, prompt):
            before, read = read, int(cache.lengths[0])
            speculation.read(decoded, read - before, prompt.embeds[before + 1 : read + 1])
        answer.take(decoded.logits[0, 0])
        yield
        while not answer.ended:
            speculation.step(answer)
            yield


def _with_fallback(
    model: ExportedModel, drafted: Iterator[None], steps: Iterator[None], drafts: Drafts
) -> Iterator[None]:
    """Calls of speculative decoding, or plain steps where the MTP layer and its cache do not fit in memory.

    There is a fallback only where a policy chooses the number of drafts: a number that the user gave is kept to.
    """
    problem = None
    try:
        next(drafted)
    except NoMemoryError as error:
        if drafts.policy is None:
            raise
        problem = str(error)
    if problem is None or drafts.policy is None:
        yield
        yield from drafted
        return
    give_up_drafts(model, drafts.policy)
    next(steps)  # where this fails as well, its error alone is shown
    say_without_drafts(problem)
    yield
    yield from steps
