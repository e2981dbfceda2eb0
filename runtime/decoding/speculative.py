"""Speculative decoding: the MTP layer drafts tokens, one decoder call checks them all (Leviathan et al. 2023).

A draft token is accepted if the sampler, given the decoder's logits at its position, chooses the same token. So the
answer is the one without drafts, for any sampler, except for near ties: a call of several tokens sums in another order
than a call of one. With float activations logits differ in their last bits. With int8 activations a last bit may change
a rounding step, and logits differ by up to 0.01. Rejected drafts are rolled back from both KV caches. Where the policy
drafts nothing, a call is a plain step, and the MTP layer reads the skipped tokens later.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError
from runtime.decoding.forward import decode, prefill_chunks
from runtime.ort.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from runtime.decoding.draft_policy import DraftPolicy
    from runtime.decoding.sampling import Sampler
    from runtime.exported import ExportedModel
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded
    from runtime.prompt import Prompt

_MAX_PENDING = 512  # tokens that the MTP layer has not read yet; so many are read in one call


@dataclass
class Drafts:
    """The number of draft tokens of each decoder call in one answer, and counts of what happened."""

    tokens: int
    """Draft tokens of a call at most."""
    policy: DraftPolicy | None = None
    """Chooses a number up to `tokens` for each call; None always drafts `tokens`."""
    calls: int = 0
    """Decoder calls after the prompt."""
    drafted: int = 0
    """Draft tokens."""
    accepted: int = 0
    """Draft tokens that the sampler chose too."""

    @property
    def disabled(self) -> bool:
        """Whether the policy will draft nothing any more."""
        return self.policy is not None and self.policy.disabled

    @property
    def acceptance(self) -> float | None:
        """Accepted share of the draft tokens; None before the first."""
        return self.accepted / self.drafted if self.drafted else None

    def choose(self, most: int) -> int:
        """Choose the number of draft tokens of the next call, at most `most`."""
        most = min(self.tokens, most)
        return most if self.policy is None else self.policy.choose(most)

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Report the time of a call to the policy."""
        if self.policy is not None:
            self.policy.observe(drafts, accepted, seconds)


def speculate(
    model: ExportedModel, prompt: Prompt, sampler: Sampler, limit: int, drafts: Drafts, generated: Sequence[int]
) -> Iterator[int]:
    """Yield tokens without end. The caller appends each to `generated`, up to `limit`."""
    rollback = model.drafter.decoder_rollback
    most, capacity = _draft_limit(drafts, rollback.window), len(prompt.ids) + limit
    with model.decoder.borrow_cache(capacity) as cache, model.drafter.session.borrow_cache(capacity) as mtp_cache:
        mtp = _MtpReader(model, mtp_cache)
        decoded, known = _prefill(model, prompt, cache, mtp), prompt.embeds[:0]
        yield sampler(decoded.logits[0, 0], generated)
        while True:
            start = perf_counter()
            last = model.embed_tokens(np.array(generated[-1:]))
            known = np.concatenate((known, last))
            count = drafts.choose(min(most, limit - len(generated) - 1))  # the call itself gives one token more
            drafted: list[int] = []
            assert decoded.hidden is not None
            if count:
                drafted = mtp.draft(decoded.hidden, known, count)
                saved = rollback.save(cache, count + 1)
            elif not drafts.disabled:
                mtp.postpone(decoded.hidden, known)
            checked = np.concatenate((last, model.embed_tokens(np.array(drafted, np.int64))))
            decoded = decode(model, cache, checked, np.arange(count + 1))
            seconds = perf_counter() - start
            accepted = yield from _accept(decoded.logits[0], drafted, sampler, generated, drafts)
            start = perf_counter()
            if accepted < count:
                rollback.roll_back(cache, saved, count - accepted)
            drafts.observe(count, accepted, seconds + perf_counter() - start)
            known = checked[1 : accepted + 1]


def _accept(
    logits: NDArray[np.float32], drafted: list[int], sampler: Sampler, generated: Sequence[int], drafts: Drafts
) -> Generator[int, None, int]:
    """Yield the tokens sampled from logits [N + 1, V], up to the first that differs from its draft.

    Returns how many of the N draft tokens were accepted.
    """
    drafts.calls += 1
    drafts.drafted += len(drafted)
    before = drafts.accepted
    for row, draft in zip(logits, [*drafted, None], strict=True):
        token = sampler(row, generated)
        drafts.accepted += token == draft
        yield token
        if token != draft:
            break
    return drafts.accepted - before


def _draft_limit(drafts: Drafts, window: int | None) -> int:
    """Largest number of draft tokens, which must be below the window. Raises InputError where the user gave more."""
    if window is None or drafts.tokens < window:
        return drafts.tokens
    if drafts.policy is None:
        raise InputError(
            f"--draft-tokens {drafts.tokens}: a window of {window} tokens is too short for as many; give fewer"
        )
    return window - 1


def _prefill(model: ExportedModel, prompt: Prompt, cache: KVCache, mtp: _MtpReader) -> Decoded:
    """Fill both caches with the prompt, so that a lack of memory is known before the first token of the answer.

    Returns the last chunk with the hidden state of the last token only: the MTP layer reads it with the first token.
    """
    read = 0
    for decoded in prefill_chunks(model, cache, prompt):
        before, read = read, int(cache.lengths[0])
        following = prompt.embeds[before + 1 : read + 1]
        assert decoded.hidden is not None
        if len(following):
            mtp.read(decoded.hidden, following)
    assert decoded.hidden is not None
    last = decoded.hidden.read()[:, read - before - 1 : read - before]
    return decoded._replace(hidden=Buffer.from_array(last, decoded.hidden.dtype, decoded.hidden.device))


class _MtpReader:
    """Feeds one sequence to the MTP layer: at once, or when it next drafts.

    For each token it reads the token's embedding and the decoder's hidden state one token earlier.
    """

    def __init__(self, model: ExportedModel, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._pending: list[tuple[NDArray[np.generic], NDArray[np.float32]]] = []

    def read(self, hidden: Buffer, embeds: NDArray[np.float32]) -> None:
        """Read embeddings [T, H] with the first T rows of hidden [1, at least T, H]."""
        self._model.drafter.session.run(self._cache, embeds[None], np.array([[0]]), _first_rows(hidden, len(embeds)))

    def postpone(self, hidden: Buffer, embeds: NDArray[np.float32]) -> None:
        """Copy them to the host, to be read later: the decoder's next call may overwrite `hidden`."""
        self._pending.append((hidden.read()[:, : len(embeds)], embeds))
        if sum(len(embeds) for _, embeds in self._pending) >= _MAX_PENDING:
            self.read(*self._take(hidden))

    def draft(self, hidden: Buffer, embeds: NDArray[np.float32], tokens: int) -> list[int]:
        """Read them and everything postponed, then draft `tokens`."""
        if self._pending:
            self._pending.append((hidden.read()[:, : len(embeds)], embeds))
            hidden, embeds = self._take(hidden)
        known = _first_rows(hidden, len(embeds))
        return self._model.drafter.draft(self._cache, embeds, known, tokens, self._model.embed_tokens)

    def _take(self, like: Buffer) -> tuple[Buffer, NDArray[np.float32]]:
        """Everything postponed, the hidden states as one buffer with dtype and device of `like`."""
        hidden, embeds = zip(*self._pending, strict=True)
        self._pending = []
        return Buffer.from_array(np.concatenate(hidden, axis=1), like.dtype, like.device), np.concatenate(embeds)


def _first_rows(hidden: Buffer, rows: int) -> Buffer:
    """The first rows of hidden [1, T, H]."""
    return hidden.view(0, (1, rows, hidden.shape[2]))
