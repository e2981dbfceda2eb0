"""Which split a document belongs to, by a hash: the same on every machine, whatever else there is.

The splits of one source never share a document. Rendered documents are split by the values printed on them. All others
are split by their decoded pixels: copies of a page, all questions about it, and the same page in another file or
lossless format stay together. Documents without a picture are split by their prompt.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, get_args

from console.text import canonical

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["training", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of_value(text: str) -> Split:
    """The one split that a printed value may appear in: 80 % training, 10 % calibration, 10 % evaluation."""
    tenth = hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 10
    return "calibration" if tenth == 8 else "evaluation" if tenth == 9 else "training"


def split_of_picture(image: Image.Image) -> Split:
    """The split of all documents with this RGB picture: 60 % calibration, 40 % evaluation."""
    return _split_of_bytes(f"{image.width}x{image.height} ".encode(), image.tobytes())


def split_of_prompt(prompt: str) -> Split:
    """The split of a document without a picture: 60 % calibration, 40 % evaluation."""
    return _split_of_bytes(canonical(prompt).encode())


def _split_of_bytes(*parts: bytes) -> Split:
    content = hashlib.blake2b(digest_size=8)
    for part in parts:
        content.update(part)
    return "calibration" if int.from_bytes(content.digest()) % 5 < 3 else "evaluation"
