"""How far a folder is from its FP16 baseline: both scores on the same documents, and how their predictions diverge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.evaluate import Scored, score, summary, truth_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from calib_data.document import Document
    from runtime.generate import Model


@dataclass(frozen=True)
class Compared:
    """One document read by both models.

    kl: KL(baseline || candidate) in nats, and agree: whether both find the same token likeliest. Each is [T], with one
    entry per token of the true answer and one for its end.
    """

    baseline: Scored
    candidate: Scored
    kl: NDArray[np.float64]
    agree: NDArray[np.bool_]


def compare(baseline: Model, candidate: Model, document: Document) -> Compared:
    """Answer a document with both models, and predict its true answer token by token with both."""
    models = (baseline, candidate)
    truth = [*baseline.chat.encode_text(truth_of(document)), min(baseline.end_ids)]
    prompts = [model.prompt(document.prompt, [document.image]) for model in models]
    logits = [model.teacher_forced(prompt, truth) for model, prompt in zip(models, prompts, strict=True)]
    scored = [score(model, document, prompt) for model, prompt in zip(models, prompts, strict=True)]
    return Compared(
        baseline=scored[0],
        candidate=scored[1],
        kl=divergence(*logits),
        agree=logits[0].argmax(-1) == logits[1].argmax(-1),
    )


def divergence(baseline: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(baseline || candidate) [T] in nats of next-token logits [T, V], in float64."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (baseline, candidate))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)  # type: ignore[no-any-return]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def comparison(compared: Sequence[Compared]) -> dict[str, Any]:
    """Scores of both models, and over all tokens of all answers the mean KL and the share of equal likeliest tokens."""
    return {
        "documents": len(compared),
        "baseline": summary([one.baseline for one in compared]),
        "candidate": summary([one.candidate for one in compared]),
        "answers_changed": sum(one.baseline.answer != one.candidate.answer for one in compared),
        "token_agreement": float(np.concatenate([one.agree for one in compared]).mean()),
        "mean_kl": float(np.concatenate([one.kl for one in compared]).mean()),
    }
