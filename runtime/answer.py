"""What `generate` makes of questions: text as it comes, a JSON object, or one for each line of a file."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calib_data.sources import open_questions
from console.errors import InputError, NoMemoryError, naming
from console.progress import say
from runtime.draft_policy import MOST, DraftPolicy
from runtime.sampling import ignored
from runtime.speculative import Drafts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from calib_data.document import Document
    from runtime.generate import Model, Prompt, Question
    from runtime.sampling import Sampling


@dataclass(frozen=True)
class Answers:
    """How a model answers: every question by itself, as if it were the only one.

    draft_tokens: how many are drafted ahead of each call, or what chooses it.
    """

    model: Model
    sampling: Sampling
    max_new_tokens: int
    thinking: bool
    draft_tokens: int | DraftPolicy

    def load(self) -> float:
        """Load the model's decoder, once the questions are known to be possible; returns the seconds that it took."""
        start = time.perf_counter()
        policy = self.draft_tokens if isinstance(self.draft_tokens, DraftPolicy) else None
        self.model.load(drafts=policy is None and self.draft_tokens != 0)
        if policy is not None:
            try:
                self.model.load(drafts=True)
            except NoMemoryError as error:
                say(f"answering without drafts: {error}")
                policy.given_up = True
        if unused := ignored(self.model.generation):
            say(f"{self.model.folder}/generation_config.json: {', '.join(unused)}: without effect here")
        return time.perf_counter() - start

    def stream(self, question: Question) -> None:
        """Print an answer as it comes, and say what cut it."""
        prompt, text, written = self.model.embed(question), self.model.chat.stream_answer(thinking=self.thinking), 0
        for written, token in enumerate(self._tokens(prompt, self._drafts()), 1):  # noqa: B007 - counted to the last
            sys.stdout.write(text.push(token))
            sys.stdout.flush()
        sys.stdout.write(text.finish() + "\n")
        if written == self.model.capacity(prompt):
            say(f"stopped after {written} tokens; the model's context of {self.model.manifest.text.context} is full")
        elif written == self.max_new_tokens:
            say(f"stopped after {written} tokens; --max-new-tokens allows more, up to the model's context")

    def to_json(self, question: Question, load_seconds: float) -> dict[str, Any]:
        """A whole answer, and how fast it came: the first token since it was asked, the others since the first."""
        tokens, times, drafts = [], [time.perf_counter()], self._drafts()
        prompt = self.model.embed(question)
        for token in self._tokens(prompt, drafts):
            tokens.append(token)
            times.append(time.perf_counter())
        answer = self.model.chat.decode_answer(tokens, thinking=self.thinking)
        result = {
            "model": str(self.model.folder),
            "load_seconds": load_seconds,
            "prompt_tokens": len(prompt.ids),
            "text": answer.text,
            "reasoning": answer.reasoning,
            "tokens": tokens,
            "finish": "length" if len(tokens) == self.model.budget(prompt, self.max_new_tokens) else "end",
            "first_token_seconds": times[1] - times[0] if tokens else None,
            "tokens_per_second": (len(tokens) - 1) / (times[-1] - times[1]) if len(tokens) > 1 else None,
        }
        drafted = drafts is not None and (drafts.policy is None or drafts.calls > 0)
        return result | (_of_drafts(drafts) if drafts and drafted else {})

    def of_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Answers to the lines of a .jsonl in their order, each with its line's name and prompt.

        Every line is looked at before the model is loaded, and its picture is opened again when its turn comes. Raises
        InputError, with the number of the line, for one that cannot be answered.
        """
        asked = open_questions(path)
        for where, document in asked:
            with naming(where):
                self._question(document)
        seconds = self.load()
        for where, document in asked:
            with naming(where):
                answer = self.to_json(self._question(document), seconds)
            yield {"name": document.name, "prompt": document.prompt, **answer}

    def _question(self, document: Document) -> Question:
        if not document.prompt.strip():
            raise InputError("has an empty prompt; write a question, or leave it out to have a picture read")
        images = [] if document.picture is None else [document.image]
        names = [document.name for _ in images]
        return self.model.question(document.prompt, images, names=names, thinking=self.thinking)

    def _drafts(self) -> Drafts | None:
        if isinstance(self.draft_tokens, DraftPolicy):
            return None if self.draft_tokens.given_up else Drafts(MOST, self.draft_tokens)
        return Drafts(self.draft_tokens) if self.draft_tokens else None

    def _tokens(self, prompt: Prompt, drafts: Drafts | None) -> Iterator[int]:
        return self.model.generate(prompt, self.sampling.sampler(), self.max_new_tokens, drafts)


def _of_drafts(drafts: Drafts) -> dict[str, Any]:
    """What a JSON object says of drafts. draft_tokens: the mean of all calls."""
    mean = drafts.drafted / drafts.calls if drafts.calls else None
    return {"decoder_calls": drafts.calls, "draft_tokens": mean, "draft_acceptance": drafts.acceptance}
