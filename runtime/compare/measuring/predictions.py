"""A model's next-token predictions along the true answer of a document, and the KL divergence of two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runtime.decoding.forward import teacher_forced
from runtime.evaluate import Scored, score, truth_of
from runtime.inputs.images import image_grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from calib_data.document import Document
    from runtime.model import Model


class ModelOutput(NamedTuple):
    """What a model gives for one document."""

    scored: Scored | None
    """Its greedy answer; None for a reference."""
    predictions: Iterator[Predictions]
    """Predictions of the true answer, one for each slice of `answer_parts`."""


def predict(model: Model, document: Document, tokens: Sequence[int]) -> ModelOutput:
    """Answer a document greedily, and predict the tokens of its true answer."""
    scored, prompt = score(model, document)
    return ModelOutput(scored, map(Predictions.from_logits, teacher_forced(model, prompt, tokens)))


def token_ids(model: Model, document: Document) -> list[int]:
    """Tokenize a document: question with image, reasoning, true answer and end of turn. Runs no graph."""
    vision, image = model.manifest.vision, document.image
    assert vision is not None
    grid = image_grid(image.height, image.width, model.image_settings, document.name)
    image_tokens, thinking = math.prod(grid) // vision.merge_size**2, document.reasoning is not None
    question = model.chat.encode(document.prompt, [image_tokens], thinking=thinking)
    return [*question.tolist(), *answer_ids(model, document)]


def answer_ids(model: Model, document: Document) -> list[int]:
    """Tokenize a document's reasoning, if it has one, its true answer and the end of turn."""
    return [*model.chat.encode_answer(truth_of(document), document.reasoning), model.end_ids[0]]


@dataclass(frozen=True)
class Predictions:
    """Next-token distributions at T positions, over all V tokens or the K likeliest.

    Logits stay float32 and are normalized in float64 one position at a time: 256 positions of 153600 tokens would take
    300 MiB in float64.
    """

    logits: NDArray[np.float32]
    """[T, V] or [T, K]."""
    log_sum: NDArray[np.float64]
    """Log of the sum over all V tokens of exp(logit - largest logit), [T]."""
    ids: NDArray[np.int64] | None = None
    """Token ids of the K likeliest, [T, K]; None for all V."""

    @classmethod
    def from_logits(cls, logits: NDArray[np.float32]) -> Predictions:
        """Make predictions over all tokens from logits [T, V]."""
        return cls(logits, np.array([np.log(np.exp(_shifted(row)).sum()) for row in logits]))

    @classmethod
    def from_top_k(
        cls, logits: NDArray[np.float32], logsumexp: NDArray[np.float64], ids: NDArray[np.int64]
    ) -> Predictions:
        """Make predictions over the K likeliest from their logits and ids [T, K], and logsumexp [T] of all logits."""
        return cls(logits, logsumexp - logits.max(-1), ids)

    def __getitem__(self, part: slice) -> Predictions:
        """Predictions at some of the positions."""
        return Predictions(self.logits[part], self.log_sum[part], None if self.ids is None else self.ids[part])

    def log_probabilities(self, position: int) -> NDArray[np.float64]:
        """Log-probabilities at one position, [V] or [K]."""
        row = _shifted(self.logits[position])
        row -= self.log_sum[position]
        return row

    @property
    def top_tokens(self) -> NDArray[np.int64]:
        """The likeliest token at each position, [T]."""
        best: NDArray[np.int64] = self.logits.argmax(-1)
        return best if self.ids is None else self.ids[np.arange(len(best)), best]

    def log_likelihood(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probability of one given token at each position, [T]; NaN if it is not among the K likeliest."""
        columns, known = self._columns(tokens)
        values = self.logits[np.arange(len(tokens)), columns].astype(np.float64) - self.logits.max(-1) - self.log_sum
        return np.where(known, values, np.nan)

    def rank(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of one given token at each position by probability, from 1, [T]; only where it is known."""
        columns, _ = self._columns(tokens)
        # One position at a time: a comparison of all logits at once would take a quarter of their memory.
        return np.array([1 + (row > row[column]).sum() for row, column in zip(self.logits, columns, strict=True)])

    def _columns(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Column of one given token at each position, [T], and whether it is known."""
        if self.ids is None:
            return tokens, np.ones(len(tokens), bool)
        matches = self.ids == tokens[:, None]
        return matches.argmax(-1), matches.any(-1)


def _shifted(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    row = logits.astype(np.float64)
    row -= row.max()
    return row


def kl_divergence(baseline: Predictions, candidate: Predictions) -> NDArray[np.float64]:
    """KL(baseline || candidate) in nats, [T]. The candidate's predictions are over all tokens.

    If the baseline knows only its K likeliest tokens, all others count as one. This is a lower bound of the divergence
    (data processing inequality), and a close one if the others are unlikely.
    """
    return np.array([_kl_at(baseline, candidate, position) for position in range(len(baseline.logits))])


def _kl_at(baseline: Predictions, candidate: Predictions, position: int) -> np.float64:
    log_p, log_q = baseline.log_probabilities(position), candidate.log_probabilities(position)
    if baseline.ids is not None:
        log_p, log_q = _with_rest(log_p), _with_rest(log_q[baseline.ids[position]])
    total: np.float64 = (np.exp(log_p) * (log_p - log_q)).sum()
    return total


def _with_rest(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append the log-probability of all other tokens together."""
    return np.append(known, np.log1p(-np.exp(known).sum().clip(max=1 - 1e-12)))
