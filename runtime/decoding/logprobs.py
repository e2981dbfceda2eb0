"""Log probabilities of a token and of the likeliest ones, as the model gives them: before penalties and temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.decoding.sampling import likeliest

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one position of an answer."""

    token: int
    """The chosen token."""
    logprob: float
    """Its log probability."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log probabilities, the likeliest first, and of equals the smaller id."""


def token_logprobs(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
    """Log probabilities of a token and of the `top` likeliest ones, given logits [V]; sums are float64."""
    largest = logits.max()
    log_sum = float(largest) + float(np.log(np.exp(np.subtract(logits, largest, dtype=np.float64)).sum()))
    found: list[int] = likeliest(logits, min(top, len(logits))).tolist() if top else []
    found.sort(key=lambda candidate: (-logits[candidate], candidate))
    shown = tuple((candidate, float(logits[candidate]) - log_sum) for candidate in found[:top])
    return TokenLogprobs(token, float(logits[token]) - log_sum, shown)
