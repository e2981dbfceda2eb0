"""Scores the greedy answers of one folder on documents with known answers."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from calib_data.scores import anls, character_error_rate, exact_match
from calib_data.sources import open_documents, shortfall
from console.errors import InputError, naming
from console.progress import say
from runtime.decoding.generate import generate, token_limit
from runtime.decoding.sampling import Sampling, greedy
from runtime.engine.answer_all import answer_all, open_engine
from runtime.engine.request import Request
from runtime.prompt import embed_prompt, prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from calib_data.document import Document
    from calib_data.rendered.render import Kind
    from runtime.exported import ExportedModel, ModelFolder
    from runtime.prompt import Prompt, PromptInputs

# Longest answer, without and with reasoning, or twice the known one if that is longer: beyond it an answer is wrong
# anyway.
ANSWER_TOKENS, REASONING_TOKENS = 512, 4096
SCORES = ("exact_match", "cer", "anls")


@dataclass(frozen=True)
class Scored:
    """One document's answer, its scores and its time."""

    name: str
    """Name of the document."""
    truth: str
    """Known answer; the first of several."""
    answer: str
    """Text of the answer."""
    ids: list[int]
    """Tokens of the answer."""
    seconds: float
    """Time of the answer, vision encoder and prompt included."""
    finished: bool
    """Whether the answer ended by itself: not at the limit of tokens, nor within the reasoning."""
    exact_match: float
    """1 for the known answer, else 0."""
    cer: float
    """Character error rate, 0 or more."""
    anls: float
    """Average normalized Levenshtein similarity, 0 to 1."""


def evaluation_documents(source: str, count: int, seed: int, kind: Kind | None) -> list[Document]:
    """Open at most `count` held-out documents of a source; says on stderr where it has fewer.

    Raises InputError for a document without a known answer.
    """
    documents = open_documents(source, split="evaluation", count=count, seed=seed, kind=kind)
    for document in documents:
        truth_of(document)
    if fewer := shortfall(source, "evaluation", len(documents), count):
        say(f"{len(documents)} documents{fewer}")
    return documents


def require_vision(model: ModelFolder) -> None:
    """Raise InputError for a model without a vision encoder."""
    if model.manifest.vision is None:
        raise InputError(
            f"{model.folder}: this model reads text only, and documents are images; give a vision-language model"
        )


def say_without_effect(model: ExportedModel) -> None:
    """Say on stderr which fields of generation_config.json have no effect on greedy answers."""
    if line := model.generation.without_effect({"do_sample": False, "max_new_tokens": None}):
        say(line)


def truth_of(document: Document) -> str:
    """Known answer of a document; the first of several. Raises InputError where there is none."""
    if document.answer is None:
        raise InputError(f"{document.name}: has no known answer, so it cannot be scored; add one")
    return document.answer


def score(model: ExportedModel, document: Document) -> tuple[Scored, Prompt]:
    """Answer a document greedily and score the answer. Returns the embedded prompt too, for further use."""
    start = time.perf_counter()
    inputs, limit = _question(model, document)
    prompt = embed_prompt(model, inputs)
    tokens = list(generate(model, prompt, greedy, limit))
    return _scored(model, document, tokens, limit, time.perf_counter() - start), prompt


def score_all(model: ExportedModel, documents: Sequence[Document]) -> Iterator[Scored]:
    """Answer documents greedily, many at a time, and score the answers.

    The time of a document is from when it was opened: others were answered in it, too.
    """
    limits = [(len(inputs.ids), limit) for inputs, limit in (_question(model, document) for document in documents)]
    engine = open_engine(model, len(documents), max(tokens + limit for tokens, limit in limits))
    answers = answer_all(engine, (_request(model, document) for document in documents))
    for document, (_, limit), answer in zip(documents, limits, answers, strict=True):
        with naming(document.name):
            answer.finished()
        yield _scored(model, document, answer.tokens, limit, answer.seconds[-1] - answer.seconds[0])


def _question(model: ExportedModel, document: Document) -> tuple[PromptInputs, int]:
    """The prompt of a document, and the longest answer to it. A document with reasoning is answered with thinking."""
    truths, image, thinking = (truth_of(document), *document.also), document.image, document.reasoning is not None
    inputs = prompt_inputs(model, document.prompt, [image], names=[document.name], thinking=thinking)
    longest = 2 * max(len(model.chat.encode_answer(text, document.reasoning)) for text in truths)
    return inputs, token_limit(model, inputs, max(REASONING_TOKENS if thinking else ANSWER_TOKENS, longest))


def _request(model: ExportedModel, document: Document) -> Request:
    inputs, limit = _question(model, document)
    return Request(inputs, Sampling(), limit, thinking=document.reasoning is not None)


def _scored(model: ExportedModel, document: Document, tokens: list[int], limit: int, seconds: float) -> Scored:
    """Score an answer; each score is the best over all known answers. What follows `</think>` is scored."""
    truths, thinking = (truth_of(document), *document.also), document.reasoning is not None
    answer = model.chat.decode_answer(tokens, thinking=thinking).text
    return Scored(
        name=document.name,
        truth=truths[0],
        answer=answer,
        ids=tokens,
        seconds=seconds,
        finished=len(tokens) < limit and (not thinking or model.chat.parse_reasoning(tokens).marker is not None),
        exact_match=max(exact_match(answer, text) for text in truths),
        cer=min(character_error_rate(answer, text) for text in truths),
        anls=anls(answer, truths),
    )


def summary(scored: Sequence[Scored], seconds: float | None = None) -> dict[str, float]:
    """Mean scores, total seconds, and tokens a second of all documents together.

    seconds: of all documents, where they were answered at the same time; None: the sum of their times.
    """
    rows = [asdict(document) for document in scored]
    means = {name: float(np.mean([row[name] for row in rows])) for name in SCORES}
    tokens = sum(len(document.ids) for document in scored)
    if seconds is None:
        seconds = float(sum(document.seconds for document in scored))
    return {"documents": len(rows), **means, "seconds": seconds, "tokens_per_second": tokens / seconds}
