"""One document through a baseline and its candidates: answers and scores, and predictions of the true answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.errors import InputError
from runtime.compare.predictions import Predictions, divergence
from runtime.evaluate import Scored, score, truth_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document
    from runtime.compare.baseline import Baseline
    from runtime.generate import Model


@dataclass(frozen=True)
class Reading:
    """One model on one document.

    log_likelihood: of each token of the true answer and its end, [T]; None where the baseline does not know it.
    """

    scored: Scored | None
    log_likelihood: list[float | None]


@dataclass(frozen=True)
class Difference:
    """A candidate's predictions against the baseline's along the true answer, and its answer against the baseline's.

    kl: in nats, [T]. agree: whether both find the same token likeliest, [T]. first_change: place of the first token
    that differs between both answers; None where they are the same, or the baseline gave none.
    """

    kl: list[float]
    agree: list[bool]
    first_change: int | None


@dataclass(frozen=True)
class Measured:
    """One document: how the baseline reads it, and how each candidate does."""

    name: str
    prompt: str
    truth: str
    baseline: Reading
    candidates: list[Reading]
    differences: list[Difference]

    def to_json(self) -> dict[str, Any]:
        """As nested dictionaries."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measured:
        """Read what `to_json` made."""
        return cls(
            **{name: value[name] for name in ("name", "prompt", "truth")},
            baseline=_reading(value["baseline"]),
            candidates=[_reading(one) for one in value["candidates"]],
            differences=[Difference(**one) for one in value["differences"]],
        )


def _reading(value: dict[str, Any]) -> Reading:
    scored = value["scored"]
    return Reading(None if scored is None else Scored(**scored), value["log_likelihood"])


def require_same_tokens(baseline: Model, candidate: Model) -> None:
    """Raise InputError for two models whose logits are not about the same tokens."""
    folders = (baseline.folder, candidate.folder)
    sizes = [model.bundle.text.vocab_size for model in (baseline, candidate)]
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in folders]
    if sizes[0] != sizes[1] or tokenizers[0] != tokenizers[1]:
        raise InputError(f"{folders[1]}: its tokens are not those of {folders[0]}; give two folders of one model")


def measure(baseline: Baseline, candidates: Sequence[Model], document: Document) -> Measured:
    """Read a document with every model: answer it, and predict its true answer token by token.

    Raises InputError, with the document's name, where one cannot.
    """
    try:
        return _measure(baseline, candidates, document)
    except InputError as error:
        named = document.name in str(error)
        raise error if named else InputError(f"{document.name}: {error}") from error


def _measure(baseline: Baseline, candidates: Sequence[Model], document: Document) -> Measured:
    truth = truth_of(document)
    tokens = [*candidates[0].chat.encode_text(truth), candidates[0].end_ids[0]]
    expected = baseline.read(document, tokens)
    readings, differences = [], []
    for model in candidates:
        scored, predictions = read(model, document, tokens)
        readings.append(_reading_of(scored, predictions, tokens))
        differences.append(
            Difference(
                kl=divergence(expected.predictions, predictions).tolist(),
                agree=(expected.predictions.likeliest == predictions.likeliest).tolist(),
                first_change=first_change(expected.scored, scored),
            )
        )
    own = _reading_of(expected.scored, expected.predictions, tokens)
    return Measured(document.name, document.prompt, truth, own, readings, differences)


def read(model: Model, document: Document, tokens: Sequence[int]) -> tuple[Scored, Predictions]:
    """Answer a document greedily, and predict the tokens of its true answer."""
    scored, prompt = score(model, document)
    return scored, Predictions.of_logits(model.teacher_forced(prompt, tokens))


def _reading_of(scored: Scored | None, predictions: Predictions, tokens: Sequence[int]) -> Reading:
    known = predictions.of(np.array(tokens))
    return Reading(scored, [None if np.isnan(value) else float(value) for value in known])


def first_change(baseline: Scored | None, candidate: Scored) -> int | None:
    """Place of the first token of two answers that differs; the end counts as one."""
    if baseline is None or baseline.ids == candidate.ids:
        return None
    pairs = zip([*baseline.ids, None], [*candidate.ids, None], strict=False)
    return next(place for place, (one, other) in enumerate(pairs) if one != other)
