"""Next-token predictions along a known answer, and how far two models' are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities at T positions, float64: of every token, [T, V], or of the K likeliest, [T, K].

    ids: which tokens the K are, [T, K] int64; None for all.
    """

    log_probs: NDArray[np.float64]
    ids: NDArray[np.int64] | None = None

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32]) -> Predictions:
        """Normalise logits [T, V], in float64."""
        wide = logits.astype(np.float64)
        for row in wide:  # one at a time: a vocabulary of 153600 takes 1.2 MB a row
            row -= row.max()
            row -= np.log(np.exp(row).sum())
        return cls(wide)

    def __getitem__(self, part: slice) -> Predictions:
        """Those at some of the positions."""
        return Predictions(self.log_probs[part], None if self.ids is None else self.ids[part])

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """The likeliest token of each position, [T]."""
        best: NDArray[np.int64] = self.log_probs.argmax(-1)
        return best if self.ids is None else self.ids[np.arange(len(best)), best]

    def of(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probability of one token at each position, [T]; NaN where it is not among those that are known."""
        rows = np.arange(len(tokens))
        if self.ids is None:
            return self.log_probs[rows, tokens]
        found = self.ids == tokens[:, None]
        return np.where(found.any(-1), self.log_probs[rows, found.argmax(-1)], np.nan)


def divergence(baseline: Predictions, candidate: Predictions) -> NDArray[np.float64]:
    """KL(baseline || candidate) [T] in nats. candidate: of every token.

    Where the baseline knows its K likeliest only, all others count as one token. That is a lower bound of the
    divergence (data processing inequality), and close where they are unlikely.
    """
    log_p, log_q = baseline.log_probs, candidate.log_probs
    if baseline.ids is None:
        return _sum(log_p, log_q)
    log_q = np.take_along_axis(log_q, baseline.ids, -1)
    rest = [np.log1p(-np.exp(part).sum(-1, keepdims=True).clip(max=1 - 1e-12)) for part in (log_p, log_q)]
    return _sum(np.concatenate((log_p, rest[0]), -1), np.concatenate((log_q, rest[1]), -1))


def _sum(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([(np.exp(p) * (p - q)).sum() for p, q in zip(log_p, log_q, strict=True)])
