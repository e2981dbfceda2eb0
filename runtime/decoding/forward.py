"""Forward passes of the decoder: a prompt in chunks, one step, and the logits of a known answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError
from runtime.decoding.prompt_chunks import prompt_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from runtime.decoding.prompt_chunks import Chunk
    from runtime.exported import ExportedModel
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded
    from runtime.prompt import Prompt

ANSWER_CHUNK = 256  # tokens of a known answer a call: bounds their logits, 150 MiB for a vocabulary of 153600


class NotFiniteError(InputError):
    """A model gave NaN or infinite numbers. The cache may hold some."""

    def __init__(self, model: ExportedModel) -> None:
        super().__init__(
            f"{model.folder}: gives NaN or infinite numbers, its weights are damaged or overflow in float16; "
            "quantize the checkpoint again with --dtype bfloat16"
        )


def prefill(model: ExportedModel, cache: KVCache, prompt: Prompt) -> NDArray[np.float32]:
    """Fill an empty cache with a prompt and return the logits [V] after its last token."""
    for decoded in prefill_chunks(model, cache, prompt):
        logits: NDArray[np.float32] = decoded.logits[0, 0]
    return logits


def prefill_chunks(model: ExportedModel, cache: KVCache, prompt: Prompt) -> Iterator[Decoded]:
    """Fill an empty cache with a prompt chunk by chunk; each gives the logits [1, 1, V] after its last token.

    The hidden states of a chunk may end with those of padding. Raises NotFiniteError.
    """
    for chunk in prompt_chunks(len(prompt.ids), model.chunking, smallest_buffer(cache)):
        yield read_chunk(model, cache, prompt.embeds[chunk.start : chunk.stop], chunk)


def smallest_buffer(cache: KVCache) -> int:
    """Rows of the smallest buffer of a cache: a window, or its capacity."""
    return min(cache.capacity, *(buffer.shape[2] for buffer in cache.buffers))


def read_chunk(model: ExportedModel, cache: KVCache, embeds: NDArray[np.float32], chunk: Chunk) -> Decoded:
    """Extend the cache of one sequence by embeds [T, H] of a chunk; gives the logits [1, 1, V] after its last token.

    The hidden states may end with those of padding. Raises NotFiniteError.
    """
    tokens = chunk.stop - chunk.start
    if chunk.padding:
        embeds = np.pad(embeds, ((0, chunk.padding), (0, 0)))
    decoded = decode(model, cache, embeds, np.array([tokens - 1]))
    cache.lengths[:] = chunk.stop
    if model.target.kv_dtype == "int8":
        # Rounding to int8 turns NaN and infinite keys into numbers, and later answers would look sound.
        assert decoded.hidden is not None
        _require_finite(model, decoded.hidden.read()[:, :tokens])
    return decoded


def decode(model: ExportedModel, cache: KVCache, embeds: NDArray[np.float32], positions: NDArray[np.int64]) -> Decoded:
    """Run the decoder on embeds [T, H] and compute logits at `positions` [L] of them.

    Raises NotFiniteError for logits whose maximum is not finite, as any NaN makes it.
    """
    decoded = model.decoder.run(cache, embeds[None], positions[None])
    _require_finite(model, decoded.logits.max(-1))
    return decoded


def answer_parts(length: int) -> list[slice]:
    """Split a known answer of `length` tokens into the calls of `teacher_forced`: the first token, then chunks."""
    starts = range(1, length, ANSWER_CHUNK)
    return [slice(0, 1), *(slice(start, min(start + ANSWER_CHUNK, length)) for start in starts)]


def teacher_forced(model: ExportedModel, prompt: Prompt, answer: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits [n, V] of a known answer, for each of its `answer_parts`: teacher forcing.

    Raises InputError, at once, where prompt and answer are longer than the model's context.
    """
    total, context = len(prompt.ids) + len(answer), model.manifest.text.context
    if total > context:
        raise InputError(f"prompt and known answer: {total} tokens, the model's context is {context}; shorten them")
    return _teacher_forced(model, prompt, np.array(answer))


def _teacher_forced(model: ExportedModel, prompt: Prompt, answer: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    with model.decoder.borrow_cache(len(prompt.ids) + len(answer) - 1) as cache:
        yield prefill(model, cache, prompt)[None]
        for part in answer_parts(len(answer))[1:]:
            before = answer[part.start - 1 : part.stop - 1]
            yield decode(model, cache, model.embed_tokens(before), np.arange(len(before))).logits[0]


def _require_finite(model: ExportedModel, values: NDArray[np.generic]) -> None:
    if not np.isfinite(values).all():
        raise NotFiniteError(model)
