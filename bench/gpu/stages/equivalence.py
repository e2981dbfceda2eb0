"""Ways to decode that must not change an answer, against plain decoding.

Batches, drafts, captured steps, a cache that held NaN, and prompts longer than the windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.figures import Figure
from calib_data.sources import open_documents
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import decode, prefill
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import Prompt, build_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bench.gpu.bench import Bench
    from runtime.ort.cache import KVCache

BATCH, STEPS = 4, 24
WINDOWS = 3  # a prompt is longer than this many windows
LONGEST = 200  # tokens of an answer


def equivalence(bench: Bench, folder: Path) -> Iterator[Figure]:
    """Compare each with plain decoding on the same device."""
    model, count = Model(folder, bench.device), 2 if bench.tiny else 40
    documents = open_documents("rendered", split="evaluation", count=max(count, BATCH), seed=1)
    prompts = [build_prompt(model, document.prompt, [document.image]) for document in documents]
    yield _batch(model, prompts[:BATCH])
    yield _poisoned(model, prompts[0])
    yield _overrun(model)
    plain = [_answer(model, prompt) for prompt in prompts[:count]]
    for drafts in (1, 2, 3):
        drafted = [_answer(model, prompt, drafts) for prompt in prompts[:count]]
        yield _changed(f"{drafts} drafts", plain, drafted)
    if bench.on_gpu:
        captured = Model(folder, bench.device, Options(capture=True))
        yield _changed("captured steps", plain, [_answer(captured, prompt) for prompt in prompts[:count]])


def _answer(model: Model, prompt: Prompt, drafts: int = 0) -> list[int]:
    return list(generate(model, prompt, greedy, LONGEST, Drafts(drafts) if drafts else None))


def _changed(name: str, plain: list[list[int]], answers: list[list[int]]) -> Figure:
    changed = sum(answer != expected for answer, expected in zip(answers, plain, strict=True))
    return Figure(f"{name}: greedy answers changed", changed, f"of {len(plain)}")


def _difference(name: str, logits: NDArray[np.float32], expected: NDArray[np.float32], note: str = "") -> Figure:
    """Largest difference of logits, relative to the largest logit; NaN stays NaN."""
    return Figure(name, float(np.abs(logits - expected).max() / np.abs(expected).max()), note=note)


def _steps(model: Model, cache: KVCache, first: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [STEPS, B, V]: those of the prompts [B, V], then of steps with the same tokens for every sequence."""
    logits, tokens = [first], np.random.default_rng(0).integers(80, 500, STEPS - 1)
    wanted = np.zeros((len(first), 1), np.int64)
    for token in tokens:
        embeds = np.repeat(model.embed_tokens(np.array([token]))[None], len(first), axis=0)
        logits.append(model.decoder.run(cache, embeds, wanted).logits[:, 0])
    return np.stack(logits)


def _batch(model: Model, prompts: list[Prompt]) -> Figure:
    """Sequences in a batch, against each alone."""
    capacity = max(len(prompt.ids) for prompt in prompts) + STEPS
    together, alone = model.decoder.new_cache(capacity, len(prompts)), []
    first = np.stack([prefill(model, together.row(i), prompt) for i, prompt in enumerate(prompts)])
    for prompt in prompts:
        cache = model.decoder.new_cache(capacity)
        alone.append(_steps(model, cache, prefill(model, cache, prompt)[None]))
    expected = np.concatenate(alone, axis=1)
    logits = _steps(model, together, first)
    same = (logits.argmax(-1) == expected.argmax(-1)).mean()
    note = f"{same:.1%} of {logits.shape[0] * logits.shape[1]} likeliest tokens are the same"
    return _difference(f"batch of {len(prompts)}: largest difference of logits", logits, expected, note)


def _poisoned(model: Model, prompt: Prompt) -> Figure:
    """A cache whose buffers held NaN, against one of zeros."""
    by_value: list[NDArray[np.float32]] = []
    for value in (np.nan, 0.0):
        cache = model.decoder.new_cache(len(prompt.ids) + STEPS)
        for buffer in cache.buffers:
            buffer.write(np.full(buffer.shape, value, np.float32))
        last = np.array([[len(prompt.ids) - 1]])
        logits = model.decoder.run(cache, prompt.embeds[None], last).logits[0]  # unlike prefill, does not refuse NaN
        by_value.append(_steps(model, cache, logits))
    return _difference("a cache that held NaN: largest difference of logits", by_value[0], by_value[1])


def _overrun(model: Model) -> Figure:
    """A prompt of several windows in pieces of one window, then steps, against the prompt in one call."""
    window = min(window for window in model.manifest.text.windows if window)
    tokens = WINDOWS * window + 7
    embeds = model.embed_tokens(np.random.default_rng(0).integers(80, 500, tokens))
    by_piece = []
    for piece in (window, tokens):
        cache = model.decoder.new_cache(tokens + STEPS)
        for start in range(0, tokens, piece):
            part = embeds[start : start + piece]
            logits = decode(model, cache, part, np.array([len(part) - 1])).logits[0]
        by_piece.append(_steps(model, cache, logits))
    return _difference(f"windows filled {WINDOWS} times: largest difference of logits", by_piece[0], by_piece[1])
