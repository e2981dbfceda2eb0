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

    @property
    def image(self) -> Image.Image:
        """The RGB picture, opened anew each time. Raises InputError if there is none or it cannot be read."""
        if self.picture is None:
            raise InputError(f"{self.name} has no picture")
        return self.picture if isinstance(self.picture, Image.Image) else self.picture()

    def digest(self) -> str:
        """SHA-256 of name, prompt, answers and pixels."""
        image = None if self.picture is None else self.image
        parts = (self.name, self.prompt, self.answer, *self.also, None if image is None else image.size)
        sha256 = hashlib.sha256(json.dumps(parts).encode())
        if image is not None:
            sha256.update(image.tobytes())
        return sha256.hexdigest()
