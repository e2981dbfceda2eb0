"""A document: an image, what is asked about it, and the true answer where it is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Document:
    """One document question.

    picture: RGB picture, or what opens it: photos of many documents at once would fill the memory. None where there is
    only a prompt, which a model without vision reads.
    prompt: the user's turn, plain text without image placeholders or chat markup.
    answer: ground truth; None where the source has none.
    name: stable and unique within its source, such as a file name or "evaluation/0/17".
    also: other answers that are as true.
    """

    picture: Image.Image | Callable[[], Image.Image] | None
    prompt: str
    answer: str | None
    name: str
    also: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The RGB picture, opened anew each time. Raises InputError where it cannot be read any more, or is none."""
        if self.picture is None:
            raise InputError(f"{self.name} has no picture")
        return self.picture if isinstance(self.picture, Image.Image) else self.picture()

    def digest(self) -> str:
        """A hash of all that it is: equal for the same picture, question and answers under the same name."""
        image = None if self.picture is None else self.image
        parts = (self.name, self.prompt, self.answer, *self.also, None if image is None else image.size)
        found = hashlib.sha256(json.dumps(parts).encode())
        if image is not None:
            found.update(image.tobytes())
        return found.hexdigest()
