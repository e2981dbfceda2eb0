"""Text that looks the same is the same; and values in messages that are too long to read."""

from __future__ import annotations

import re
import unicodedata

_LONGEST_WORD = 400  # a path fits, a picture in base64 does not
_LONGEST_MESSAGE = 1200
_LONGEST_VALUE = 40


def canonical(text: str) -> str:
    r"""Text in NFC, with line ends as \n: what tokenizers, trained on such text, should see.

    NFC joins decomposed Hangul and accents, as macOS writes file names and many PDF tools write text. It keeps what
    looks different or means something else: NFKC would turn full-width digits, ligatures and the jamo of a keyboard
    into other characters. A tokenizer's own normalizer comes later, so it has the last word.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def escape_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs, as of bytes in a file name, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shorten_message(message: str) -> str:
    """A message without the middle of what is too long: a `data:` URI, a prompt of a megabyte."""
    message = re.sub(r"data:[\w.+-]+/[^\s,]{1,100},\S{40,}", lambda uri: shorten(uri[0], 80), message)
    message = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: shorten(word[0], _LONGEST_WORD), message)
    return shorten(message, _LONGEST_MESSAGE)


def shorten(text: str, longest: int) -> str:
    """Text of at most so many characters: where it has more, its middle is left out, and its length is said."""
    if len(text) <= longest:
        return text
    note = f"…[{len(text)} characters]…"
    tail = (longest - len(note)) // 3
    return text[: longest - len(note) - tail] + note + text[len(text) - tail :]


def short_repr(value: object) -> str:
    """A value as Python writes it, short enough for a message."""
    return shorten(repr(value), _LONGEST_VALUE)
