"""Autoregressive generation: prefill the KV cache, then sample token after token, with or without draft tokens."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from console.errors import NoMemoryError
from console.progress import say
from runtime.decoding.forward import decode, prefill
from runtime.decoding.speculative import speculate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.decoding.sampling import Sampler
    from runtime.decoding.speculative import Drafts
    from runtime.exported import ExportedModel
    from runtime.prompt import Prompt, PromptInputs


def generate(
    model: ExportedModel, prompt: Prompt, sampler: Sampler, max_new_tokens: int, drafts: Drafts | None = None
) -> Iterator[int]:
    """Yield the tokens of an answer as they come, without the end token, at most what the context has capacity for.

    drafts: generate with speculative decoding. The tokens are the same, except for near ties; see
    `runtime.decoding.speculative`.
    """
    limit = token_limit(model, prompt, max_new_tokens)
    generated: list[int] = []
    tokens = _step_by_step(model, prompt, sampler, limit, generated)
    if drafts is not None:
        drafted = speculate(model, prompt, sampler, limit, drafts, generated)
        tokens = _with_fallback(model, drafted, tokens, drafts)
    for token in tokens:
        if token in model.end_ids:
            return
        generated.append(token)
        yield token
        if len(generated) == limit:
            return


def context_left(model: ExportedModel, prompt: Prompt | PromptInputs) -> int:
    """Tokens of the context that a prompt leaves for its answer."""
    return model.manifest.text.context - len(prompt.ids)


def token_limit(model: ExportedModel, prompt: Prompt | PromptInputs, max_new_tokens: int) -> int:
    """Largest number of tokens of an answer: `max_new_tokens`, or what the context has left."""
    return min(max_new_tokens, context_left(model, prompt))


def _step_by_step(
    model: ExportedModel, prompt: Prompt, sampler: Sampler, limit: int, generated: Sequence[int]
) -> Iterator[int]:
    """Yield tokens without end, one decoder call each. The caller appends each to `generated`, up to `limit`."""
    with model.decoder.borrow_cache(len(prompt.ids) + limit) as cache:
        logits = prefill(model, cache, prompt)
        while True:
            token = sampler(logits, generated)
            yield token
            logits = decode(model, cache, model.embed_tokens(np.array([token])), np.array([0])).logits[0, 0]


def _with_fallback(model: ExportedModel, drafted: Iterator[int], steps: Iterator[int], drafts: Drafts) -> Iterator[int]:
    """Tokens of speculative decoding, or plain steps where the MTP layer and its cache do not fit in memory.

    There is a fallback only where a policy chooses the number of drafts: a number that the user gave is kept to.
    """
    try:
        return chain([next(drafted)], drafted)
    except NoMemoryError as error:
        if drafts.policy is None:
            raise
        problem = str(error)
    drafts.policy.disabled = True
    model.unload_drafter()  # here the error, which referred to it, is gone too
    first = next(steps)  # where this fails as well, its error alone is shown
    say(f"answering without drafts: {problem}")
    return chain([first], steps)
