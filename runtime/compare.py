"""How far a folder is from its FP16 baseline: both scores on the same documents, and how their predictions diverge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.errors import InputError
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


def require_same_tokens(baseline: Model, candidate: Model) -> None:
    """Raise InputError for two models whose logits are not about the same tokens."""
    folders = (baseline.folder, candidate.folder)
    sizes = [model.bundle.text.vocab_size for model in (baseline, candidate)]
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in folders]
    if sizes[0] != sizes[1] or tokenizers[0] != tokenizers[1]:
        raise InputError(f"{folders[1]}: its tokens are not those of {folders[0]}; give two folders of one model")


def compare(baseline: Model, candidate: Model, document: Document) -> Compared:
    """Answer a document with both models, and predict its true answer token by token with both."""
    truth = [*baseline.chat.encode_text(truth_of(document)), baseline.end_ids[0]]
    scored, logits = [], []
    for model in (baseline, candidate):
        answer, prompt = score(model, document)
        scored.append(answer)
        logits.append(model.teacher_forced(prompt, truth))
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


def comparison(compared: Sequence[Compared], max_drop: float) -> dict[str, Any]:
    """Scores of both models, whether the loss of ANLS passes, and how their predictions differ.

    mean_kl and token_agreement, the share of equal likeliest tokens, are means over all tokens of all true answers.
    """
    baseline = summary([one.baseline for one in compared])
    candidate = summary([one.candidate for one in compared])
    drop = baseline["anls"] - candidate["anls"]
    return {
        "documents": len(compared),
        "baseline": baseline,
        "candidate": candidate,
        "answers_changed": sum(one.baseline.answer != one.candidate.answer for one in compared),
        "token_agreement": float(np.concatenate([one.agree for one in compared]).mean()),
        "mean_kl": float(np.concatenate([one.kl for one in compared]).mean()),
        "anls_drop": drop,
        "max_drop": max_drop,
        "passed": drop <= max_drop,
    }
