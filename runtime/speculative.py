"""Speculative decoding: the MTP layer drafts tokens, one call of the decoder checks them all (Leviathan et al. 2023).

A drafted token stands when the sampler, shown the decoder's own logits at its place, chooses the same one. So the text
is what it would be without drafts, whatever the sampler, but for near ties: a call of several tokens sums in another
order than a call of one. With float activations logits differ in their last bits; where activations are rounded to int8
a last bit may choose another step, and logits differ by up to 0.01. Rejected drafts are taken back from both KV caches.
Where a policy chooses to draft nothing, a call is a plain step, and the MTP layer reads later what it has missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from console.errors import InputError
from runtime.ort import graph_io
from runtime.ort.sessions import HOST, Buffer, memory_for

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from runtime.generate import Model, Prompt
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded, DecoderSession
    from runtime.sampling import Sampler


class Policy(Protocol):
    """Chooses how many tokens to draft, call by call; `runtime.draft_policy` has the one that is used."""

    given_up: bool

    def choose(self, most: int) -> int:
        """Number of drafts of the next call, at most so many."""

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Learn from a call: how many of its drafts were accepted, and what drafting and checking them took."""


@dataclass
class Drafts:
    """How many tokens are drafted ahead of each call of the decoder, and what became of them, in one answer.

    tokens: the most. policy: chooses fewer; None for always as many.
    """

    tokens: int
    policy: Policy | None = None
    calls: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def given_up(self) -> bool:
        """Nothing will be drafted any more."""
        return self.policy is not None and self.policy.given_up

    def choose(self, most: int) -> int:
        """Number of drafts of the next call, at most so many."""
        most = min(self.tokens, most)
        return most if self.policy is None else self.policy.choose(most)

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Tell the policy, where there is one, what a call took."""
        if self.policy is not None:
            self.policy.observe(drafts, accepted, seconds)

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that stood; None before any was drafted."""
        return self.accepted / self.drafted if self.drafted else None


_WAITING = 512  # tokens that the MTP layer has not read, at most: it reads so many in one call


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
        names = zip(
            graph_io.past_names(layers), graph_io.kept_names(layers), graph_io.present_names(layers), strict=True
        )
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
            with memory_for(f"what {tokens} drafts push out of the windows", "give --draft-tokens 0"):
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
        names = (graph_io.REWIND_START, graph_io.REWIND_STOP, graph_io.REWIND_ROWS)
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


class _Reader:
    """The MTP layer behind one sequence. It reads when it drafts; until then, what it has not read waits on the host.

    Of a token it reads the embedding and, beside it, the decoder's hidden state at the token before.
    """

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._waiting: list[tuple[NDArray[np.generic], NDArray[np.float32]]] = []

    def read(self, hidden: Buffer, embeds: NDArray[np.float32]) -> None:
        """Read embeddings [T, H], and the first T rows of hidden [1, at least T, H], at once."""
        self._model.drafter.session.run(self._cache, embeds[None], np.array([[0]]), _first(hidden, len(embeds)))

    def leave(self, hidden: Buffer, embeds: NDArray[np.float32]) -> None:
        """Read the same later: the decoder's next call may overwrite `hidden`."""
        self._waiting.append((hidden.read()[:, : len(embeds)], embeds))
        if sum(len(embeds) for _, embeds in self._waiting) >= _WAITING:
            self.read(*self._take(hidden))

    def draft(self, hidden: Buffer, embeds: NDArray[np.float32], tokens: int) -> list[int]:
        """Read the same and all that waits, and draft."""
        if self._waiting:
            self._waiting.append((hidden.read()[:, : len(embeds)], embeds))
            hidden, embeds = self._take(hidden)
        known = _first(hidden, len(embeds))
        return self._model.drafter.draft(self._cache, embeds, known, tokens, self._model.embed_tokens)

    def _take(self, like: Buffer) -> tuple[Buffer, NDArray[np.float32]]:
        """All that waits, hidden states as in the buffer of others."""
        hidden, embeds = zip(*self._waiting, strict=True)
        self._waiting = []
        return Buffer.of(np.concatenate(hidden, axis=1), like.dtype, like.device), np.concatenate(embeds)


def _first(hidden: Buffer, rows: int) -> Buffer:
    """The first rows of hidden [1, T, H]."""
    return hidden.stretch(0, (1, rows, hidden.shape[2]))


def speculate(
    model: Model, prompt: Prompt, sampler: Sampler, budget: int, drafts: Drafts, generated: Sequence[int]
) -> Iterator[int]:
    """Tokens of an answer without end. generated: those that were taken, kept by the caller; at most `budget`."""
    rewinder = model.drafter.decoder_rewinder
    most, capacity = _most(drafts, rewinder.window), len(prompt.ids) + budget
    with model.decoder.borrow_cache(capacity) as cache, model.drafter.session.borrow_cache(capacity) as own:
        reader = _Reader(model, own)
        decoded, known = _read_prompt(model, prompt, cache, reader), prompt.embeds[:0]
        yield sampler(decoded.logits[0, 0], generated)
        while True:
            start = perf_counter()
            last = model.embed_tokens(np.array(generated[-1:]))
            known = np.concatenate((known, last))
            count = drafts.choose(min(most, budget - len(generated) - 1))  # the call itself gives one token more
            ahead: list[int] = []
            assert decoded.hidden is not None
            if count:
                ahead = reader.draft(decoded.hidden, known, count)
                kept = rewinder.keep(cache, count + 1)
            elif not drafts.given_up:
                reader.leave(decoded.hidden, known)
            checked = np.concatenate((last, model.embed_tokens(np.array(ahead, np.int64))))
            decoded = model.decode(cache, checked, np.arange(count + 1))
            seconds = perf_counter() - start
            accepted = yield from _standing(decoded.logits[0], ahead, sampler, generated, drafts)
            start = perf_counter()
            if accepted < count:
                rewinder.rewind(cache, kept, count - accepted)
            drafts.observe(count, accepted, seconds + perf_counter() - start)
            known = checked[1 : accepted + 1]


def _standing(
    logits: NDArray[np.float32], ahead: list[int], sampler: Sampler, generated: Sequence[int], drafts: Drafts
) -> Generator[int, None, int]:
    """Tokens that logits [N + 1, V] give up to the first of N drafts that does not stand; returns how many do."""
    drafts.calls += 1
    drafts.drafted += len(ahead)
    before = drafts.accepted
    for row, draft in zip(logits, [*ahead, None], strict=True):
        token = sampler(row, generated)
        drafts.accepted += token == draft
        yield token
        if token != draft:
            break
    return drafts.accepted - before


def _most(drafts: Drafts, window: int | None) -> int:
    """Drafts that a call may have, fewer than windows hold. Raises InputError where more were asked for."""
    if window is None or drafts.tokens < window:
        return drafts.tokens
    if drafts.policy is None:
        raise InputError(
            f"--draft-tokens {drafts.tokens}: a window of {window} tokens is too short for as many; give fewer"
        )
    return window - 1


def _read_prompt(model: Model, prompt: Prompt, cache: KVCache, reader: _Reader) -> Decoded:
    """Fill both caches with the prompt, so that memory that is short is known before the first token of the answer.

    The MTP layer reads that one beside the hidden state of the last token, which is all that is returned of them.
    """
    read = 0
    for decoded in model.read_prompt(cache, prompt):
        before, read = read, int(cache.lengths[0])
        following = prompt.embeds[before + 1 : read + 1]
        assert decoded.hidden is not None
        if len(following):
            reader.read(decoded.hidden, following)
    assert decoded.hidden is not None
    last = decoded.hidden.read()[:, read - before - 1 : read - before]
    return decoded._replace(hidden=Buffer.of(last, decoded.hidden.dtype, decoded.hidden.device))
