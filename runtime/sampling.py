"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from calib_data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


# What a generation_config.json may recommend and nothing here does, with the values that change nothing.
_WITHOUT_EFFECT = {
    "repetition_penalty": 1,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
}


class Sampler(Protocol):
    """Chooses a token: (logits [V] float32, ids generated so far in this answer) -> id."""

    def __call__(self, logits: NDArray[np.float32], generated: Sequence[int]) -> int:
        """Return the id of the chosen token."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; the steps are applied in the order of the fields after the first, as vLLM does.

    seed: of the random generator; None draws a fresh one.
    presence_penalty: subtracted once from the logit of every token that was already generated, -2 … 2.
    temperature: divides the logits; 0 takes the most likely token.
    top_k: keeps the k most likely tokens, and those as likely as the last of them; 0 keeps all.
    top_p: keeps the fewest of the likeliest tokens whose probabilities add up to p or more.

    Raises InputError for a value outside these ranges.
    """

    seed: int | None = None
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"--temperature {self.temperature}: must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0 or not isinstance(self.top_k, int):
            raise InputError(f"--top-k {self.top_k}: must be 0 (off) or a whole number above")
        if not -2 <= self.presence_penalty <= 2:
            raise InputError(f"--presence-penalty {self.presence_penalty}: must be between -2 and 2")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be 0 or more")

    @classmethod
    def recommended(cls, generation: Mapping[str, Any], chosen: Mapping[str, Any], seed: int | None) -> Sampling:
        """Take what was chosen, and for the rest what a model's generation_config.json recommends.

        Greedy decoding is the likeliest token and nothing else: it takes no recommended penalty.
        Raises InputError for recommendations outside the ranges, and for a choice among tokens that greedy ignores.
        """
        names = ("presence_penalty", "temperature", "top_k", "top_p")
        values = {name: generation[name] for name in names if generation.get(name) is not None}
        values["temperature"] = values.get("temperature", 1.0) if generation.get("do_sample") else 0.0
        if chosen.get("temperature", values["temperature"]) == 0:
            values.pop("presence_penalty", None)
            if "temperature" not in chosen and {"top_k", "top_p"} & chosen.keys():
                raise InputError("--top-p, --top-k: have no effect as this model is greedy; give --temperature too")
        try:
            return cls(seed=seed, **{**values, **chosen})
        except (InputError, TypeError) as error:
            raise InputError(f"generation_config.json: what it recommends is not possible ({error})") from error

    def sampler(self) -> Sampler:
        """Begin a sequence of draws; two samplers of one seed make the same choices."""
        random = np.random.Generator(np.random.PCG64(self.seed))

        def sample(logits: NDArray[np.float32], generated: Sequence[int]) -> int:
            tokens, probabilities = distribution(logits, generated, self)
            if len(tokens) == 1:
                return int(tokens[0])
            cumulative = np.cumsum(probabilities)
            drawn = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
            return int(tokens[drawn])

        return sample


def ignored(generation: Mapping[str, Any]) -> list[str]:
    """What a model's generation_config.json recommends in vain, such as "min_p 0.1"."""
    set_ = {name: generation.get(name) for name in _WITHOUT_EFFECT}
    return [f"{name} {value}" for name, value in set_.items() if value not in (None, _WITHOUT_EFFECT[name])]


def greedy(logits: NDArray[np.float32], generated: Sequence[int]) -> int:  # noqa: ARG001
    """Take the most likely token, the first of several."""
    return int(logits.argmax())


def distribution(
    logits: NDArray[np.float32], generated: Sequence[int], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may come next after logits [V], [K] int64, and their probabilities, [K] float64, adding up to 1."""
    scores = logits.astype(np.float64)
    if sampling.presence_penalty and len(generated):
        seen = np.asarray(generated, np.int64)
        scores[seen] -= sampling.presence_penalty  # once, however often an id is repeated in the index
    if sampling.temperature == 0:
        return np.array([scores.argmax()], np.int64), np.ones(1)
    tokens = np.arange(len(scores), dtype=np.int64)
    if 0 < sampling.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -sampling.top_k)[-sampling.top_k])
    scores = scores[tokens]
    # The largest is subtracted first, so that no temperature, however small, overflows.
    probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        tokens, probabilities = _nucleus(tokens, probabilities, sampling.top_p)
    return tokens, probabilities


def _nucleus(
    tokens: NDArray[np.int64], probabilities: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Drop the unlikeliest tokens that together hold no more than 1 - p (Holtzman et al. 2020, section 3.1)."""
    order = np.argsort(probabilities, kind="stable")
    kept = order[np.cumsum(probabilities[order]) > 1 - top_p]
    if not len(kept):  # rounding, at a p near 0
        kept = order[-1:]
    return tokens[kept], probabilities[kept] / probabilities[kept].sum()
