"""How well one folder reads: its greedy answers on documents with known answers, scored."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from calib_data.scores import anls, character_error_rate, exact_match
from calib_data.sources import open_documents, shortfall
from console.errors import InputError
from console.progress import say
from runtime.sampling import greedy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document
    from calib_data.rendered.render import Kind
    from runtime.generate import Model, Prompt

ANSWER_TOKENS = 512  # an answer may have, or twice as many as the truth: what is longer is wrong all the same
SCORES = ("exact_match", "cer", "anls")


@dataclass(frozen=True)
class Scored:
    """One document's answer, its scores, each 0 to 1 (the error rate may exceed 1), and its cost.

    truth: the first, where several are. ids: tokens of the answer. seconds: from the picture to the whole answer.
    """

    name: str
    truth: str
    answer: str
    ids: list[int]
    seconds: float
    exact_match: float
    cer: float
    anls: float


def draw(source: str, count: int, seed: int, kind: Kind | None) -> list[Document]:
    """At most `count` evaluation documents of a source, as `open_documents` opens them; fewer are said.

    Raises InputError where one has no known answer.
    """
    documents = open_documents(source, split="evaluation", count=count, seed=seed, kind=kind)
    for document in documents:
        truth_of(document)
    if fewer := shortfall(source, "evaluation", len(documents), count):
        say(f"{len(documents)} documents{fewer}")
    return documents


def require_vision(model: Model) -> None:
    """Raise InputError for a model that cannot see documents."""
    if model.manifest.vision is None:
        raise InputError(f"{model.folder}: this model reads text only, and documents are pictures; give one that sees")


def truth_of(document: Document) -> str:
    """The known answer of a document. Raises InputError where there is none."""
    if document.answer is None:
        raise InputError(f"{document.name}: has no known answer, so it cannot be scored; add one")
    return document.answer


def score(model: Model, document: Document) -> tuple[Scored, Prompt]:
    """Answer a document greedily and compare with the truth; its embedded prompt comes too, for further questions.

    Where several answers are true, each score is the best over them.
    """
    truth, image = truth_of(document), document.image
    truths = (truth, *document.also)
    start = time.perf_counter()
    prompt = model.prompt(document.prompt, [image], names=[document.name])
    longest = 2 * max(len(model.chat.encode_text(one)) for one in truths)
    tokens = list(model.generate(prompt, greedy, max(ANSWER_TOKENS, longest)))
    answer = model.chat.decode_answer(tokens, thinking=False).text
    scored = Scored(
        name=document.name,
        truth=truth,
        answer=answer,
        ids=tokens,
        seconds=time.perf_counter() - start,
        exact_match=max(exact_match(answer, one) for one in truths),
        cer=min(character_error_rate(answer, one) for one in truths),
        anls=anls(answer, truths),
    )
    return scored, prompt


def summary(scored: Sequence[Scored]) -> dict[str, float]:
    """Means over documents, and speed."""
    rows = [asdict(one) for one in scored]
    means = {name: float(np.mean([row[name] for row in rows])) for name in SCORES}
    seconds, tokens = float(sum(one.seconds for one in scored)), sum(len(one.ids) for one in scored)
    return {"documents": len(rows), **means, "seconds": seconds, "tokens_per_second": tokens / seconds}
