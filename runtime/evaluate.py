"""Scores the greedy answers of one folder on documents with known answers."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from calib_data.scores import anls, character_error_rate, exact_match
from calib_data.sources import open_documents, shortfall
from console.errors import InputError
from console.progress import say
from runtime.decoding.generate import generate, token_limit
from runtime.decoding.sampling import greedy
from runtime.prompt import embed_prompt, prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document
    from calib_data.rendered.render import Kind
    from runtime.exported import ExportedModel
    from runtime.prompt import Prompt

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


def require_vision(model: ExportedModel) -> None:
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
    """Answer a document greedily and score the answer; each score is the best over all known answers.

    A document with reasoning is answered with thinking, and what follows `</think>` is scored. Returns the embedded
    prompt too, for further use.
    """
    truth, image = truth_of(document), document.image
    truths = (truth, *document.also)
    thinking = document.reasoning is not None
    start = time.perf_counter()
    inputs = prompt_inputs(model, document.prompt, [image], names=[document.name], thinking=thinking)
    prompt = embed_prompt(model, inputs)
    longest = 2 * max(len(model.chat.encode_answer(text, document.reasoning)) for text in truths)
    limit = token_limit(model, prompt, max(REASONING_TOKENS if thinking else ANSWER_TOKENS, longest))
    tokens = list(generate(model, prompt, greedy, limit))
    answer = model.chat.decode_answer(tokens, thinking=thinking).text
    scored = Scored(
        name=document.name,
        truth=truth,
        answer=answer,
        ids=tokens,
        seconds=time.perf_counter() - start,
        finished=len(tokens) < limit and (not thinking or model.chat.parse_reasoning(tokens).marker is not None),
        exact_match=max(exact_match(answer, text) for text in truths),
        cer=min(character_error_rate(answer, text) for text in truths),
        anls=anls(answer, truths),
    )
    return scored, prompt


def summary(scored: Sequence[Scored]) -> dict[str, float]:
    """Mean scores, total seconds, and tokens a second of all documents together."""
    rows = [asdict(document) for document in scored]
    means = {name: float(np.mean([row[name] for row in rows])) for name in SCORES}
    seconds, tokens = float(sum(document.seconds for document in scored)), sum(len(document.ids) for document in scored)
    return {"documents": len(rows), **means, "seconds": seconds, "tokens_per_second": tokens / seconds}
