"""Samples the next token from logits, in a few passes over the vocabulary and without sorting it.

Top p is rejection sampling, as in FlashInfer (Ye et al. 2025, arXiv:2501.01005, and Xing et al. 2025,
flashinfer.ai/2025/03/10/sampling.html). A token is drawn from all. It is accepted if the likelier tokens hold less than
p. Else the next token is drawn from the likelier ones, which include the whole nucleus. So every token of the nucleus
(Holtzman et al. 2020) is drawn with its exact probability. Weights are float32, as logits are. Sums over blocks are
float64.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


_BLOCK = 256  # tokens that share a sum: a block is drawn first, then a token of it
_SAMPLE = 1024  # tokens sampled to estimate where a small nucleus ends

RECOMMENDED = ("presence_penalty", "temperature", "top_k", "top_p")
"""Fields of `Sampling` that generation_config.json may recommend."""


class Sampler(Protocol):
    """Chooses the next token."""

    def __call__(self, logits: NDArray[np.float32], generated: Sequence[int]) -> int:
        """Return a token id, given logits [V] and the ids of this answer so far."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, applied in the order of the fields after the first, as in vLLM.

    Raises InputError for a value out of its range.
    """

    seed: int | None = None
    """Seed of the random generator; None draws a fresh one."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token already generated, -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time it was generated, -2 to 2."""
    temperature: float = 0.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Keeps the k likeliest tokens, and those as likely as the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keeps the fewest of the likeliest tokens whose probabilities sum to p or more, above 0 and up to 1."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"--temperature {self.temperature}: must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise InputError(f"--top-k {self.top_k}: must be 0 (off) or a whole number above")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be between -2 and 2")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be 0 or more")

    @classmethod
    def recommended(cls, generation: Mapping[str, Any], chosen: Mapping[str, Any], seed: int | None) -> Sampling:
        """Settings that the user chose, completed by the recommendations of a model's generation_config.json.

        generation: checked fields of that file. Greedy decoding takes no recommended penalty. Raises InputError for a
        chosen value out of its range, and for a chosen top p or top k that greedy decoding would ignore.
        """
        values = {name: generation[name] for name in RECOMMENDED if generation.get(name) is not None}
        values["temperature"] = values.get("temperature", 1.0) if generation.get("do_sample") else 0.0
        if chosen.get("temperature", values["temperature"]) == 0:
            values.pop("presence_penalty", None)
            if "temperature" not in chosen and {"top_k", "top_p"} & chosen.keys():
                raise InputError("--top-p, --top-k: have no effect as this model is greedy; give --temperature too")
        return cls(seed=seed, **{**values, **chosen})

    def sampler(self) -> Sampler:
        """A sampler for one answer; samplers with the same seed make the same choices."""
        return _Draws(self)


class _Draws:
    """Sampler of one answer. `generated` only grows, so each call reads its new ids only."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._penalties = np.zeros(0, np.float32)  # [V]
        self._counts: Counter[int] = Counter()
        self._read = 0

    def __call__(self, logits: NDArray[np.float32], generated: Sequence[int]) -> int:
        scores = self.penalised(logits, generated)
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        tokens, weights = candidates(scores, self._sampling)
        drawn = draw(weights, self._sampling.top_p, self._random)
        return drawn if tokens is None else int(tokens[drawn])

    def penalised(self, logits: NDArray[np.float32], generated: Sequence[int]) -> NDArray[np.float32]:
        """Logits [V] less the penalties."""
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if not (presence or frequency):
            return logits
        if not self._read:
            self._penalties = np.zeros_like(logits)
        for token in generated[self._read :]:
            self._counts[token] += 1
            self._penalties[token] = presence + frequency * self._counts[token]
        self._read = len(generated)
        return logits - self._penalties


def greedy(logits: NDArray[np.float32], generated: Sequence[int]) -> int:  # noqa: ARG001
    """The likeliest token, the first of several."""
    return int(logits.argmax())


def candidates(scores: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """Tokens [K] that top k keeps of scores [V], or None for all, and weights proportional to their probabilities."""
    tokens = None
    if 0 < sampling.top_k < len(scores):
        tokens = likeliest(scores, sampling.top_k)
        scores = scores[tokens]
    weights = scores - scores.max()  # first, so that no temperature, however small, overflows
    weights /= np.float32(np.clip(sampling.temperature, 1e-30, 1e30))  # clipped to the range of float32
    return tokens, np.exp(weights, out=weights)


def likeliest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Tokens with the `count` largest scores [V], and those that tie with the last of them (Fan et al. 2018).

    Fewer where a mask left fewer: a score of minus infinity is none.

    Maxima of disjoint groups are scores of different tokens. So the k-th largest maximum is a lower bound of the k-th
    largest score, and few scores exceed it.
    """
    maxima = scores
    while len(maxima) >= 8 * count:
        half = len(maxima) // 2
        maxima = np.maximum(maxima[:half], maxima[half : 2 * half])
    bound = np.partition(maxima, -count)[-count]
    tokens = np.flatnonzero(scores >= bound if bound > -np.inf else scores > -np.inf)
    if len(tokens) <= count:
        return tokens
    scores = scores[tokens]
    return tokens.compress(scores >= np.partition(scores, -count)[-count])


def draw(weights: NDArray[np.float32], top_p: float, random: np.random.Generator) -> int:
    """Draw an index from the nucleus of weights [K]. Overwrites the weights."""
    sums = _block_sums(weights)
    if top_p == 1:
        return _pick_of_blocks(weights, sums, random)
    mass = top_p * sums.sum()
    tokens = shortlist(weights, mass)
    if tokens is None:
        return _draw(weights, sums, mass, random)
    weights = weights[tokens]
    return int(tokens[_draw(weights, _block_sums(weights), mass, random)])


def _draw(weights: NDArray[np.float32], sums: NDArray[np.float64], mass: float, random: np.random.Generator) -> int:
    """Draw until the tokens likelier than the drawn one hold less than `mass`. sums: of each block of weights."""
    while True:
        token = _pick_of_blocks(weights, sums, random)
        weights *= likelier(weights, token)
        sums = _block_sums(weights)
        if sums.sum() < mass:
            return token


def likelier(weights: NDArray[np.float32], token: int) -> NDArray[np.bool_]:
    """Mask [K] of the weights that rank before a token's: larger ones, and equal ones at later positions."""
    before: NDArray[np.bool_] = weights > weights[token]
    before[token + 1 :] |= weights[token + 1 :] == weights[token]
    return before


def shortlist(weights: NDArray[np.float32], mass: float) -> NDArray[np.int64] | None:
    """A superset of the tokens that hold `mass`; None where a sample estimates more than a quarter of all tokens.

    Without it a small nucleus takes 1 + ln(1/p) draws from all tokens.
    """
    step = max(1, len(weights) // _SAMPLE)
    sample = np.sort(weights[::step])[::-1]
    last = int(1.5 * np.searchsorted(np.cumsum(sample) * step, mass)) + 8  # with a margin for the error of the sample
    few = weights >= sample[min(last, len(sample) - 1)]
    if np.count_nonzero(few) > len(weights) // 4:
        return None
    tokens = np.flatnonzero(few)
    return tokens if weights[tokens].sum() >= mass else None


def _block_sums(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).astype(np.float64)


def _pick_of_blocks(weights: NDArray[np.float32], sums: NDArray[np.float64], random: np.random.Generator) -> int:
    start = _pick(sums, random) * _BLOCK
    return start + _pick(weights[start : start + _BLOCK], random)


def _pick(weights: NDArray[np.floating], random: np.random.Generator) -> int:
    """Draw an index in proportion to its weight, by the inverse of the cumulative distribution."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
