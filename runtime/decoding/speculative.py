"""Speculative decoding: the MTP layer drafts tokens, one decoder call checks them all (Leviathan et al. 2023).

A draft token is accepted if the sampler, given the decoder's logits at its position, chooses the same token. So the
answer is the one without drafts, for any sampler, except for near ties: a call of several tokens sums in another order
than a call of one. With float activations logits differ in their last bits. With int8 activations a last bit may change
a rounding step, and logits differ by up to 0.01. Rejected drafts are rolled back from both KV caches. Where the policy
drafts nothing, a call is a plain step, and the MTP layer reads the skipped tokens later.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError
from runtime.decoding.forward import decode
from runtime.ort.buffer import Buffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.decoding.answer_tokens import AnswerTokens
    from runtime.decoding.drafts import Drafts
    from runtime.exported import ExportedModel
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded

_MAX_PENDING = 512  # tokens that the MTP layer has not read yet; so many are read in one call


class Speculation:
    """Speculative decoding of one sequence: `read` each chunk of its prompt, then `step` until its answer has ended.

    It may begin at any token. The MTP layer then knows nothing before it, and fewer drafts are accepted.
    """

    def __init__(self, model: ExportedModel, cache: KVCache, mtp_cache: KVCache, drafts: Drafts) -> None:
        """Begin. cache, mtp_cache: of one sequence each; what the second has is forgotten."""
        self._model, self._cache, self._drafts = model, cache, drafts
        self._rollback = model.drafter.decoder_rollback
        self._most = _draft_limit(drafts, self._rollback.window)
        mtp_cache.lengths[:] = 0
        self._mtp = _MtpReader(model, mtp_cache)
        # The MTP layer reads the token after these with the next one, so they wait for it.
        self._hidden: Buffer | None = None  # [1, more than K, H]: hidden states of the last call
        self._known = np.zeros((0, model.manifest.text.hidden_size), np.float32)  # [K, H]: its accepted drafts

    def read(self, decoded: Decoded, tokens: int, following: NDArray[np.float32]) -> None:
        """Read a chunk of the prompt along with the decoder.

        tokens: its number of tokens. following [tokens, H]: embeddings of the tokens after each of them; one fewer at
        the end of the prompt, where the next token is that of the answer.
        """
        hidden = decoded.hidden
        assert hidden is not None
        if len(following):
            self._mtp.read(hidden, following)
        if len(following) < tokens:
            self._hidden = Buffer.from_array(hidden.read()[:, tokens - 1 : tokens], hidden.dtype, hidden.device)

    def step(self, answer: AnswerTokens) -> None:
        """Draft, check the drafts in one call of the decoder, and add the tokens that it gives to the answer.

        The cache then has the tokens of the answer before its last one. Raises NotFiniteError, NoMemoryError, and what
        the answer's sampler raises.
        """
        start = perf_counter()
        last = self._model.embed_tokens(np.array(answer.generated[-1:]))
        drafted = self._draft(last, answer.left - 1)  # the call itself gives one token more
        count = len(drafted)
        saved = self._rollback.save(self._cache, count + 1) if drafted else None
        checked = np.concatenate((last, self._model.embed_tokens(np.array(drafted, np.int64))))
        decoded = decode(self._model, self._cache, checked, np.arange(count + 1))
        seconds, accepted = perf_counter() - start, 0
        self._drafts.calls += 1
        self._drafts.drafted += count
        try:
            for accepted, draft in enumerate([*drafted, None]):
                token = answer.take(decoded.logits[0, accepted])
                self._drafts.accepted += token == draft
                if token != draft or answer.ended:
                    break
        finally:
            start = perf_counter()
            if saved is not None and accepted < count:
                self._rollback.roll_back(self._cache, saved, count - accepted)
        if not answer.ended:
            self._drafts.observe(count, accepted, seconds + perf_counter() - start)
        self._hidden, self._known = decoded.hidden, checked[1 : accepted + 1]

    def _draft(self, last: NDArray[np.float32], most: int) -> list[int]:
        """Draft tokens behind the last one, whose embedding is `last` [1, H]; else it is read later."""
        if self._hidden is None:
            return []
        count = self._drafts.choose(min(self._most, most))
        known = np.concatenate((self._known, last))
        if count:
            return self._mtp.draft(self._hidden, known, count)
        if not self._drafts.disabled:
            self._mtp.postpone(self._hidden, known)
        return []


def _draft_limit(drafts: Drafts, window: int | None) -> int:
    """Largest number of draft tokens, which must be below the window. Raises InputError where the user gave more."""
    if window is None or drafts.tokens < window:
        return drafts.tokens
    if drafts.policy is None:
        raise InputError(
            f"--draft-tokens {drafts.tokens}: a window of {window} tokens is too short for as many; give fewer"
        )
    return window - 1


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
