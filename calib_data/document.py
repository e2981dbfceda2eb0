"""A document: an image, what is asked about it, and the true answer where it is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Document:
    """One document question.

    image: RGB picture.
    prompt: the user's turn, plain text without image placeholders or chat markup.
    answer: ground truth; None where the source has none.
    name: stable and unique within its source, such as a file name or "evaluation/0/17".
    """

    image: Image.Image
    prompt: str
    answer: str | None
    name: str

    def digest(self) -> str:
        """A hash of all that it is: equal for the same picture, question and answer under the same name."""
        parts = (self.name, self.prompt, self.answer, self.image.size)
        return hashlib.sha256(json.dumps(parts).encode() + self.image.tobytes()).hexdigest()
