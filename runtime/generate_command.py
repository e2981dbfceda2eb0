"""What `python -m runtime generate` prints: text as it comes, one JSON object, or one for each question of a file."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calib_data.sources import open_questions
from console.errors import naming
from console.progress import say
from runtime.answer import Answer, AnswerStream
from runtime.decoding.drafts import open_drafting_sessions
from runtime.engine.answer_all import answer_all, open_engine
from runtime.engine.request import Request
from runtime.prompt import prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from calib_data.document import Document
    from runtime.answer import AnswerSettings
    from runtime.decoding.drafts import Drafts
    from runtime.engine.answer_all import Collected
    from runtime.engine.request import Finished
    from runtime.exported import ExportedModel
    from runtime.prompt import PromptInputs


@dataclass(frozen=True)
class GenerateCommand:
    """Answers each question independently, with the same settings."""

    model: ExportedModel
    """The model that answers."""
    settings: AnswerSettings
    """How it answers."""

    def open_sessions(self) -> float:
        """Open the sessions after the questions were checked; returns the seconds that it took."""
        start = time.perf_counter()
        open_drafting_sessions(self.model, self.settings.draft_tokens)
        if unused := self.model.generation.without_effect(self.settings.used_fields(self.model.generation)):
            say(unused)
        return time.perf_counter() - start

    def print_text(self, inputs: PromptInputs) -> None:
        """Print an answer as it comes, and on stderr why it was cut."""
        stream = AnswerStream(self.model, inputs, self.settings)
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        answer, context = stream.finish(), self.model.manifest.text.context
        if answer.budget_spent:
            say(f"--thinking-budget: ended the reasoning after {answer.reasoning_tokens} tokens")
        if self.settings.thinking and answer.reasoning_tokens == len(answer.tokens):
            say("no answer came, all of it is reasoning; --thinking-budget makes the model answer")
        if answer.finish_reason == "length":
            full = len(answer.tokens) + answer.prompt_tokens == context
            why = f"the model's context of {context} is full"
            more = "--max-new-tokens allows more, up to the model's context"
            say(f"stopped after {len(answer.tokens)} tokens; {why if full else more}")

    def to_json(self, inputs: PromptInputs, load_seconds: float) -> dict[str, Any]:
        """A whole answer with its speed. load_seconds: of `open_sessions`."""
        answer = AnswerStream(self.model, inputs, self.settings).finish()
        return self._fields(answer, load_seconds)

    def _fields(self, answer: Answer, load_seconds: float) -> dict[str, Any]:
        return {
            "model": str(self.model.folder),
            "load_seconds": load_seconds,
            "prompt_tokens": answer.prompt_tokens,
            "text": answer.text,
            "reasoning": answer.reasoning,
            "reasoning_tokens": answer.reasoning_tokens,
            "thinking_budget_spent": answer.budget_spent,
            "tokens": answer.tokens,
            "finish": "length" if answer.finish_reason == "length" else "end",
            "first_token_seconds": answer.first_token_seconds,
            "tokens_per_second": answer.tokens_per_second,
            **({} if answer.drafts is None else _draft_counts(answer.drafts)),
        }

    def answer_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Answer the lines of a JSONL file in order; each answer has its line's name and prompt.

        All lines are checked before the sessions open. An image is opened again for its answer. Raises InputError, with
        the line number, for a line that cannot be answered.
        """
        questions, longest = open_questions(path), 0
        for line, document in questions:
            with naming(line):
                longest = max(longest, len(self._inputs(document).ids))
        seconds, settings = self.open_sessions(), self.settings
        context = longest + settings.max_new_tokens
        engine = open_engine(self.model, len(questions), context, settings.draft_tokens)
        answers = answer_all(engine, (self._request(line, document) for line, document in questions))
        for (line, document), collected in zip(questions, answers, strict=True):
            with naming(line):
                answer = _answer(collected, collected.finished())
            yield {"name": document.name, "prompt": document.prompt, **self._fields(answer, seconds)}

    def _request(self, line: str, document: Document) -> Request:
        settings = self.settings
        with naming(line):
            inputs = self._inputs(document)
        return Request(inputs, settings.sampling, settings.max_new_tokens, settings.thinking, settings.thinking_budget)

    def _inputs(self, document: Document) -> PromptInputs:
        images = [] if document.picture is None else [document.image]
        names = [document.name for _ in images]
        return prompt_inputs(self.model, document.prompt, images, names=names, thinking=self.settings.thinking)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _answer(collected: Collected, end: Finished) -> Answer:
    """The whole answer of one line. The engine says the same as `AnswerStream`."""
    tokens, seconds = collected.tokens, collected.seconds
    return Answer(
        text=collected.text,
        reasoning=collected.reasoning,
        reasoning_tokens=end.reasoning_tokens,
        budget_spent=end.budget_spent,
        tokens=tokens,
        finish_reason=end.reason,
        prompt_tokens=end.prompt_tokens,
        first_token_seconds=seconds[1] - seconds[0] if tokens else None,
        tokens_per_second=(len(tokens) - 1) / (seconds[-1] - seconds[1]) if len(tokens) > 1 else None,
        drafts=end.drafts,
    )


def _draft_counts(drafts: Drafts) -> dict[str, Any]:
    mean = drafts.drafted / drafts.calls if drafts.calls else None
    return {"decoder_calls": drafts.calls, "draft_tokens": mean, "draft_acceptance": drafts.acceptance}
