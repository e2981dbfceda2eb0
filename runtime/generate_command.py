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
from runtime.answer import AnswerStream, open_answer_sessions
from runtime.prompt import prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from calib_data.document import Document
    from runtime.answer import AnswerSettings
    from runtime.decoding.speculative import Drafts
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
        open_answer_sessions(self.model, self.settings)
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
        result = {
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
        }
        return result | (_draft_counts(answer.drafts) if answer.drafts else {})

    def answer_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Answer the lines of a JSONL file in order; each answer has its line's name and prompt.

        All lines are checked before the sessions open. An image is opened again for its answer. Raises InputError, with
        the line number, for a line that cannot be answered.
        """
        questions = open_questions(path)
        for line, document in questions:
            with naming(line):
                self._inputs(document)
        seconds = self.open_sessions()
        for line, document in questions:
            with naming(line):
                answer = self.to_json(self._inputs(document), seconds)
            yield {"name": document.name, "prompt": document.prompt, **answer}

    def _inputs(self, document: Document) -> PromptInputs:
        images = [] if document.picture is None else [document.image]
        names = [document.name for _ in images]
        return prompt_inputs(self.model, document.prompt, images, names=names, thinking=self.settings.thinking)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _draft_counts(drafts: Drafts) -> dict[str, Any]:
    mean = drafts.drafted / drafts.calls if drafts.calls else None
    return {"decoder_calls": drafts.calls, "draft_tokens": mean, "draft_acceptance": drafts.acceptance}
