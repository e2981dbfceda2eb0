"""Lines of a JSONL file, {"image": path, "prompt": text}, with paths relative to the file."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from calib_data.sources import Question, parse_question
from console.errors import InputError, naming
from runtime.batch.source.page import PART_PAGES, Listed, Page, Part, fail
from runtime.batch.source.picture import open_picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from runtime.batch.storage import Storage

_BLOCK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Lines:
    """Each line is a row; empty ones are passed over."""

    storage: Storage
    """The file."""
    prompt: str | None
    """What is asked in a line without a prompt; None for READ_TEXT."""
    kind: ClassVar[str] = "lines"
    per_document: ClassVar[bool] = False
    """A row is what the file has one of."""

    def parts(self) -> Iterator[Listed]:
        """Every PART_PAGES lines are a part. The first must be valid: what is wrong with it is wrong with all."""
        part: Part | None = None
        for number, offset, line in self._lines():
            if part is None or part.count == PART_PAGES:
                if part is None:
                    self._parse(line, number)
                else:
                    yield Listed(part, part.count)
                part = Part("", number, 0, offset)
            part = Part("", part.first, part.count + 1, part.offset)
        if part is not None:
            yield Listed(part, part.count)

    def pages(self, part: Part) -> Iterator[Page]:
        """The lines of a part. One that is not valid is a page whose pictures raise the error."""
        for number, _, line in islice(self._lines(part), part.count):
            try:
                asked = self._parse(line, number)
            except InputError as error:
                yield Page(f"line {number}", None, "", partial(fail, error))
                continue
            document = asked.name or asked.image or f"line {number}"
            yield Page(document, None, asked.prompt, partial(self._pictures, asked.image, number))

    def _lines(self, part: Part | None = None) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset in bytes and content of each line that is not empty, from a part's first on."""
        number, offset = (1, 0) if part is None else (part.first, part.offset)
        begun: list[bytes] = []  # pieces of a line: joined once, however many blocks it has
        for start in range(offset, self.storage.size(), _BLOCK):
            piece, *others = self.storage.read("", start, start + _BLOCK).split(b"\n")
            begun.append(piece)
            if not others:
                continue
            for line in (b"".join(begun), *others[:-1]):
                if _holds_text(line):
                    yield number, offset, line
                number, offset = number + 1, offset + len(line) + 1
            begun = others[-1:]
        if _holds_text(rest := b"".join(begun)):
            yield number, offset, rest

    def _parse(self, line: bytes, number: int) -> Question:
        place = self._place(number)
        try:
            text = line.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{place} is not UTF-8 ({error}); save the file as UTF-8") from error
        return parse_question(text, place, self.prompt)

    def _pictures(self, image: str | None, number: int) -> Iterator[tuple[str, Image.Image]]:
        if image is None:
            return
        with naming(self._place(number)):
            yield self._place(number), open_picture(*self.storage.beside(image))

    def _place(self, number: int) -> str:
        return f"{self.storage.url}: line {number}"


def _holds_text(line: bytes) -> bool:
    return bool(line.removeprefix(codecs.BOM_UTF8).strip())
