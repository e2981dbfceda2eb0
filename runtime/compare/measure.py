"""One document through a baseline and its candidates: answers and scores, and predictions of the true answer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from console.errors import naming
from runtime.compare.predictions import Predictions, divergence
from runtime.evaluate import Scored, score, truth_of
from runtime.generate import answer_parts
from runtime.inputs.images import image_grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def token_ids(model: Model, document: Document) -> list[int]:
    """Tokens of a document's question, picture included, its true answer and the end of a turn; nothing is computed."""
    vision, image = model.manifest.vision, document.image
    assert vision is not None
    grid = image_grid(image.height, image.width, model.image_settings, document.name)
    question = model.chat.encode(document.prompt, [math.prod(grid) // vision.merge_size**2])
    return [*question.tolist(), *answer_ids(model, document)]


def answer_ids(model: Model, document: Document) -> list[int]:
    """Tokens of a document's true answer and the end of a turn."""
    return [*model.chat.encode_text(truth_of(document)), model.end_ids[0]]


def measure(baseline: Baseline, candidates: Sequence[Model], document: Document) -> Measured:
    """Read a document with every model: answer it, and predict its true answer token by token.

    Raises InputError, with the document's name, where one cannot.
    """
    with naming(document.name):
        return _measure(baseline, candidates, document)


def _measure(baseline: Baseline, candidates: Sequence[Model], document: Document) -> Measured:
    tokens = answer_ids(candidates[0], document)
    expected, *found = baseline.read(document, tokens), *(read(model, document, tokens) for model in candidates)
    own, others = Reading(expected.scored, []), [Reading(one.scored, []) for one in found]
    differences = [Difference([], [], first_change(expected.scored, one.scored)) for one in found]
    after = [one.predictions for one in found]
    for part in answer_parts(len(tokens)):
        _add_part(tokens[part], expected.predictions, after, own, others, differences)
    return Measured(document.name, document.prompt, truth_of(document), own, others, differences)


def _add_part(
    tokens: Sequence[int],
    expected: Iterator[Predictions],
    found: Sequence[Iterator[Predictions]],
    own: Reading,
    others: Sequence[Reading],
    differences: Sequence[Difference],
) -> None:
    """Add what is next predicted, of these tokens: the baseline's and one candidate's are held, and given back."""
    before = next(expected)
    own.log_likelihood.extend(_known(before, tokens))
    for predictions, reading, difference in zip(found, others, differences, strict=True):
        _add(tokens, before, next(predictions), reading, difference)


def _add(
    tokens: Sequence[int], before: Predictions, after: Predictions, reading: Reading, difference: Difference
) -> None:
    reading.log_likelihood.extend(_known(after, tokens))
    difference.kl.extend(divergence(before, after).tolist())
    difference.agree.extend((before.likeliest == after.likeliest).tolist())


class Read(NamedTuple):
    """A model on one document. scored: its answer; None where it gave none. predictions: for each of `answer_parts`."""

    scored: Scored | None
    predictions: Iterator[Predictions]


def read(model: Model, document: Document, tokens: Sequence[int]) -> Read:
    """Answer a document greedily, and predict the tokens of its true answer."""
    scored, prompt = score(model, document)
    return Read(scored, map(Predictions.of_logits, model.teacher_forced(prompt, tokens)))


def _known(predictions: Predictions, tokens: Sequence[int]) -> list[float | None]:
    """Log-likelihood of one token at each position; None where it is not known."""
    return [None if np.isnan(value) else float(value) for value in predictions.of(np.array(tokens))]


def first_change(baseline: Scored | None, candidate: Scored | None) -> int | None:
    """Place of the first token of two answers that differs; the end counts as one."""
    if baseline is None or candidate is None or baseline.ids == candidate.ids:
        return None
    pairs = zip([*baseline.ids, None], [*candidate.ids, None], strict=False)
    return next(place for place, (one, other) in enumerate(pairs) if one != other)
