"""Speculative decoding: the MTP layer drafts tokens, one call of the decoder checks them all (Leviathan et al. 2023).

A drafted token stands when the sampler, shown the decoder's own logits at its place, chooses the same one. So the text
is what it would be without drafts, whatever the sampler, but for near ties: a call of several tokens sums in another
order than a call of one. With float activations logits differ in their last bits; where activations are rounded to int8
a last bit may choose another step, and logits differ by up to 0.01. Rejected drafts are taken back from both KV caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calib_data.errors import InputError
from runtime import bundle as io
from runtime.sessions import HOST, Buffer, memory_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from runtime.cache import KVCache
    from runtime.decoder import DecoderSession
    from runtime.generate import Model, Prompt
    from runtime.sampling import Sampler


@dataclass
class Drafts:
    """How many tokens are drafted ahead of each call of the decoder, at most, and what became of them."""

    tokens: int
    calls: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that stood; None before any was drafted."""
        return self.accepted / self.drafted if self.drafted else None


class Kept(NamedTuple):
    """Rows that windows will push out: of each window buffer in turn, from position `first` on."""

    first: int
    rows: list[Buffer]


class Rewinder:
    """Takes tokens back from a cache of one sequence, and puts back what its windows pushed out for them.

    session: the graph of `export.rewind`; None for layers without windows, which need nothing but a smaller length.
    """

    def __init__(self, session: ort.InferenceSession | None, windows: Sequence[int | None]) -> None:
        self._session = session
        layers = len(windows)
        names = zip(io.past_names(layers), io.kept_names(layers), io.present_names(layers), strict=True)
        self._names = [(i, *three) for i, three in enumerate(names) if windows[i // 2] is not None]
        self.window = next((window for window in windows if window is not None), None)
        self._numbers = [Buffer.empty((1,), "int64", HOST) for _ in range(3)]

    def _first(self, length: int) -> int:
        """The earliest position that windows hold."""
        return 0 if self.window is None else max(0, length - self.window)

    def keep(self, cache: KVCache, tokens: int) -> Kept:
        """Copy the rows that `tokens` more will push out of the windows."""
        length = int(cache.lengths[0])
        first = self._first(length)
        count = self._first(length + tokens) - first
        rows = []
        if count:
            of = [cache.buffers[i] for i, *_ in self._names]
            with memory_for(f"what {tokens} drafts push out of the windows", "leave out --draft-tokens"):
                rows = [Buffer.empty((*b.shape[:2], count, b.shape[3]), b.dtype, b.device) for b in of]
                self._run(cache, of, rows, (0, 0, count))
        return Kept(first, rows)

    def rewind(self, cache: KVCache, kept: Kept, tokens: int) -> None:
        """Forget the last `tokens`, of those that were added since rows were kept."""
        length = int(cache.lengths[0])
        cache.lengths[0] = length - tokens
        back = self._first(length) - self._first(length - tokens)
        if back:
            assert self.window is not None
            start = self._first(length - tokens) - kept.first
            into = [cache.buffers[i] for i, *_ in self._names]
            self._run(cache, kept.rows, into, (start, start + back, self.window - back))

    def _run(self, cache: KVCache, kept: list[Buffer], into: list[Buffer], numbers: tuple[int, int, int]) -> None:
        assert self._session is not None
        binding = self._session.io_binding()
        names = (io.REWIND_START, io.REWIND_STOP, io.REWIND_ROWS)
        for name, buffer, number in zip(names, self._numbers, numbers, strict=True):
            buffer.write(np.array([number]))
            buffer.bind_input(binding, name)
        for (i, past_name, kept_name, present_name), rows, output in zip(self._names, kept, into, strict=True):
            cache.buffers[i].bind_input(binding, past_name)
            rows.bind_input(binding, kept_name)
            output.bind_output(binding, present_name)
        self._session.run_with_iobinding(binding)


@dataclass(frozen=True)
class Drafter:
    """The MTP layer's graph, and what takes drafts back: from the decoder's cache, and from its own."""

    session: DecoderSession
    decoder_rewinder: Rewinder
    own_rewinder: Rewinder

    def draft(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        hidden: Buffer,
        tokens: int,
        embed: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ) -> list[int]:
        """Likeliest next `tokens`, given embeddings [T, H] of known tokens and hidden [1, T, H] of those before them.

        The cache keeps what is known, and none of the drafts.
        """
        count, width = embeds.shape
        decoded = self.session.run(cache, embeds[None], np.array([[count - 1]]), hidden)
        kept = self.own_rewinder.keep(cache, tokens - 1)
        drafts = [int(decoded.logits[0, 0].argmax())]
        while len(drafts) < tokens:
            assert decoded.hidden is not None
            last = decoded.hidden.stretch((count - 1) * width, (1, 1, width))
            decoded, count = self.session.run(cache, embed(np.array(drafts[-1:]))[None], np.array([[0]]), last), 1
            drafts.append(int(decoded.logits[0, 0].argmax()))
        self.own_rewinder.rewind(cache, kept, tokens - 1)
        return drafts


class _Unread(NamedTuple):
    """What the MTP layer has still to read: hidden states [1, T, H], and embeddings of the T - 1 tokens known after."""

    hidden: Buffer
    embeds: NDArray[np.float32]


def speculate(
    model: Model, prompt: Prompt, sampler: Sampler, budget: int, drafts: Drafts, generated: Sequence[int]
) -> Iterator[int]:
    """Tokens of an answer without end. generated: those that were taken, kept by the caller; at most `budget`."""
    drafter, most = model.drafter, drafts.tokens
    window = drafter.decoder_rewinder.window
    if window is not None and most >= window:
        raise InputError(f"--draft-tokens {most}: a window of {window} tokens is too short for as many; give fewer")
    room = len(prompt.ids) + budget
    with model.decoder.borrow_cache(room) as cache, drafter.session.borrow_cache(room) as own:
        logits, unread = _read_prompt(model, prompt, cache, own)
        token = sampler(logits, generated)
        yield token
        while True:
            known = np.concatenate((unread.embeds, model.embed_tokens(np.array([token]))))
            count = min(most, budget - len(generated) - 1)  # the call itself gives one token more
            ahead = drafter.draft(own, known, unread.hidden, count, model.embed_tokens) if count else []
            kept = drafter.decoder_rewinder.keep(cache, count + 1)
            checked = model.embed_tokens(np.array([token, *ahead]))
            decoded = model.decode(cache, checked, np.arange(count + 1))
            drafts.calls += 1
            drafts.drafted += count
            accepted = 0
            for row in decoded.logits[0]:
                token = sampler(row, generated)
                stands = accepted < count and token == ahead[accepted]
                accepted += stands
                drafts.accepted += stands
                yield token
                if not stands:
                    break
            drafter.decoder_rewinder.rewind(cache, kept, count - accepted)
            assert decoded.hidden is not None
            stood = decoded.hidden.stretch(0, (1, accepted + 1, checked.shape[1]))
            unread = _Unread(stood, checked[1 : accepted + 1])


def _read_prompt(model: Model, prompt: Prompt, cache: KVCache, own: KVCache) -> tuple[NDArray[np.float32], _Unread]:
    """Fill both caches with the prompt; returns the logits [V] after it."""
    for decoded in model.read_prompt(cache, prompt):
        assert decoded.hidden is not None
        read = int(cache.lengths[0])
        following = prompt.embeds[read - decoded.hidden.shape[1] + 1 : read + 1]
        if read < len(prompt.ids):
            model.drafter.session.run(own, following[None], np.array([[0]]), decoded.hidden)
    assert decoded.hidden is not None
    return decoded.logits[0, 0], _Unread(decoded.hidden, following)
