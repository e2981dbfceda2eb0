"""Next-token predictions along a known answer, and how far two models' are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Predictions at T positions: of every token, or of the K likeliest.

    Kept as the logits that they are, float32, and normalised in float64 a position at a time: of 256 positions and
    153600 tokens, all in float64 would take 300 MiB.

    logits: [T, V], or [T, K]. log_sum: float64 [T], the log of the sum over all tokens of the exponentials of logits,
    each less the largest. ids: which tokens the K are, [T, K] int64; None for all.
    """

    logits: NDArray[np.float32]
    log_sum: NDArray[np.float64]
    ids: NDArray[np.int64] | None = None

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32]) -> Predictions:
        """Predictions of every token, of logits [T, V]."""
        return cls(logits, np.array([np.log(np.exp(_shifted(row)).sum()) for row in logits]))

    @classmethod
    def of_likeliest(
        cls, logits: NDArray[np.float32], logsumexp: NDArray[np.float64], ids: NDArray[np.int64]
    ) -> Predictions:
        """Predictions of the K likeliest tokens, of their logits and ids [T, K] and the logsumexp [T] of all logits."""
        return cls(logits, logsumexp - logits.max(-1), ids)

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, part: slice) -> Predictions:
        """Those at some of the positions."""
        return Predictions(self.logits[part], self.log_sum[part], None if self.ids is None else self.ids[part])

    def at(self, place: int) -> NDArray[np.float64]:
        """Log-probabilities at one position, of every token [V] or of the likeliest [K]."""
        row = _shifted(self.logits[place])
        row -= self.log_sum[place]
        return row

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """The likeliest token of each position, [T]."""
        best: NDArray[np.int64] = self.logits.argmax(-1)
        return best if self.ids is None else self.ids[np.arange(len(best)), best]

    def of(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probability of one token at each position, [T]; NaN where it is not among those that are known."""
        rows = np.arange(len(tokens))
        found = None if self.ids is None else self.ids == tokens[:, None]
        columns = tokens if found is None else found.argmax(-1)
        values = self.logits[rows, columns].astype(np.float64) - self.logits.max(-1) - self.log_sum
        return values if found is None else np.where(found.any(-1), values, np.nan)


def _shifted(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    row = logits.astype(np.float64)
    row -= row.max()
    return row


def divergence(baseline: Predictions, candidate: Predictions) -> NDArray[np.float64]:
    """KL(baseline || candidate) [T] in nats. candidate: of every token.

    Where the baseline knows its K likeliest only, all others count as one token. That is a lower bound of the
    divergence (data processing inequality), and close where they are unlikely.
    """
    return np.array([_divergence(baseline, candidate, place) for place in range(len(baseline))])


def _divergence(baseline: Predictions, candidate: Predictions, place: int) -> np.float64:
    log_p, log_q = baseline.at(place), candidate.at(place)
    if baseline.ids is not None:
        log_p, log_q = _with_rest(log_p), _with_rest(log_q[baseline.ids[place]])
    found: np.float64 = (np.exp(log_p) * (log_p - log_q)).sum()
    return found


def _with_rest(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of some tokens, and of all others as one."""
    return np.append(known, np.log1p(-np.exp(known).sum().clip(max=1 - 1e-12)))
