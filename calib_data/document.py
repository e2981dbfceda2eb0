"""A document: a picture, what is asked about it, and the true answers where they are known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

READ_TEXT = "Read the text."
"""The prompt of a picture that comes without one."""
THINK, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Document:
    """One question about one document."""

    picture: Image.Image | Callable[[], Image.Image] | None
    """RGB picture, or a function that opens it, so that many photos do not fill the memory; None without a picture."""
    prompt: str
    """The user's turn: plain text without image placeholders or chat markup."""
    answer: str | None
    """Ground truth; None where the source has none."""
    name: str
    """Stable and unique within its source, such as a file name or "evaluation/0/17"."""
    also: tuple[str, ...] = ()
    """Other answers that are equally true."""
    reasoning: str | None = None
    """What the model writes before `</think>` and the answer; None where it answers at once.

    An answer that holds its reasoning is split when the document is made.
    """

    def __post_init__(self) -> None:
        found, given = None, (self.reasoning or "").strip() or None
        if self.answer is not None:
            (found, answer), *others = (split_reasoning(text, self.name) for text in (self.answer, *self.also))
            object.__setattr__(self, "answer", answer)
            object.__setattr__(self, "also", tuple(text for _, text in others))
        elif given:
            raise InputError(f"{self.name}: has reasoning without an answer; add the answer")
        if given and found and given != found:
            raise InputError(f"{self.name}: has reasoning of its own and another in its answer; keep one")
        object.__setattr__(self, "reasoning", given or found)

    @property
    def image(self) -> Image.Image:
        """The RGB picture, opened anew each time. Raises InputError if there is none or it cannot be read."""
        if self.picture is None:
            raise InputError(f"{self.name} has no picture")
        return self.picture if isinstance(self.picture, Image.Image) else self.picture()

    def digest(self) -> str:
        """SHA-256 of name, prompt, answers, reasoning and pixels."""
        image = None if self.picture is None else self.image
        parts = (self.name, self.prompt, self.answer, *self.also, None if image is None else image.size)
        if self.reasoning is not None:  # without it, digests are those of references written before
            parts += (self.reasoning,)
        sha256 = hashlib.sha256(json.dumps(parts).encode())
        if image is not None:
            sha256.update(image.tobytes())
        return sha256.hexdigest()


def split_reasoning(text: str, name: str) -> tuple[str | None, str]:
    """Split "<think>reasoning</think>answer" into both; None for empty or no reasoning.

    `<think>` may be missing, as where the prompt ends with it. name: what an InputError calls the document, raised for
    reasoning that does not end.
    """
    reasoning, marker, answer = text.partition(THINK_END)
    if not marker:
        if text.lstrip().startswith(THINK):
            raise InputError(f"{name}: its answer begins with {THINK} and has no {THINK_END}; add it, or drop both")
        return None, text
    return reasoning.strip().removeprefix(THINK).strip() or None, answer.strip()
