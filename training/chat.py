"""Questions about one page and their answers as token ids, written by the reader's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from tokenizers import Tokenizer

from calib_data import READER
from training.architecture import CONFIG

IMAGE = "<|image_pad|>"


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    prompt: str
    """The question."""
    answer: str
    """The answer."""
    thought: str | None
    """Reasoning before the answer; None if thinking is off."""
    cells: tuple[int, ...] = ()
    """The merged image token of each printed character of the answer, where known."""


@dataclass(frozen=True)
class Chat:
    """Token ids of questions about one page and their answers; all lists have the same length."""

    tokens: list[int]
    """Token ids, image tokens included."""
    written: list[bool]
    """Whether the model writes the token itself."""
    attention_target: list[int]
    """For a printed character, the position of the image token that shows it, else -1."""


def encode(turns: list[Turn], places: int) -> Chat:
    """Write questions about one page, and their answers, as the template does. places: image tokens of the page.

    Several questions share the cost of encoding the page. The template drops the reasoning of past turns, so only the
    last turn may have one.
    """
    messages: list[dict[str, Any]] = []
    text, chat = "", Chat([], [], [])
    for turn in turns:
        messages.append(_user_message(turn.prompt, with_image=not messages))
        prompt = _render(messages, thinking=turn.thought is not None)
        reply = turn.answer if turn.thought is None else f"{turn.thought}\n</think>\n\n{turn.answer}"
        for part, by_model in ((prompt[len(text) :], False), (f"{reply}<|endofturn|>", True)):
            tokens = load_tokenizer().encode(part.replace(IMAGE, IMAGE * places)).ids
            chat.tokens.extend(tokens)
            chat.written.extend([by_model] * len(tokens))
            chat.attention_target.extend([-1] * len(tokens))
        _set_attention_target(chat, turn)
        text = f"{prompt}{reply}<|endofturn|>"
        messages.append({"role": "assistant", "content": turn.answer})
    return chat


def prompt_text(prompt: str, places: int, thinking: bool) -> str:
    """Render the chat of one page and one question, with its image token once per merged token."""
    return _render([_user_message(prompt, with_image=True)], thinking).replace(IMAGE, IMAGE * places)


@cache
def load_tokenizer() -> Tokenizer:
    """Load the reader's tokenizer."""
    return Tokenizer.from_file(str(READER / "tokenizer.json"))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((READER / "chat_template.jinja").read_text(encoding="utf-8"))


def _set_attention_target(chat: Chat, turn: Turn) -> None:
    """Mark where the answer that ends the chat is printed; every printed character is one token."""
    first = chat.tokens.index(CONFIG["image_token_id"])
    answer = len(chat.tokens) - 1 - len(turn.answer)
    printed = [offset for offset, char in enumerate(turn.answer) if not char.isspace()]
    for offset, cell in zip(printed, turn.cells, strict=False):
        chat.attention_target[answer + offset] = first + cell


def _user_message(prompt: str, with_image: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image"}] if with_image else []
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}


def _render(messages: list[dict[str, Any]], thinking: bool) -> str:
    return _template().render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)
