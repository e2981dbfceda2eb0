"""Text that looks the same is the same; and values in messages that are too long to read."""

from __future__ import annotations

import re
import unicodedata

_LONGEST_WORD = 400  # a path fits, a picture in base64 does not
_LONGEST_MESSAGE = 1200


def canonical(text: str) -> str:
    r"""Text in NFC, with line ends as \n: what tokenizers, trained on such text, should see.

    NFC joins decomposed Hangul and accents, as macOS writes file names and many PDF tools write text. It keeps what
    looks different or means something else: NFKC would turn full-width digits, ligatures and the jamo of a keyboard
    into other characters. A tokenizer's own normalizer comes later, so it has the last word.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def shorten(message: str) -> str:
    """A message without the middle of what is too long: a `data:` URI, a prompt of a megabyte."""
    message = re.sub(r"data:[\w.+-]+/[^\s,]{1,100},\S{40,}", lambda uri: _cut(uri[0], 40, 0), message)
    message = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: _cut(word[0], 120, 60), message)
    return message if len(message) <= _LONGEST_MESSAGE else _cut(message, 700, 300)


def _cut(text: str, head: int, tail: int) -> str:
    return f"{text[:head]}…[{len(text)} characters]…{text[len(text) - tail :]}"
