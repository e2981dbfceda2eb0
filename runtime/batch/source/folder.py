"""Images and PDFs in a folder and those below it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from calib_data.document import READ_TEXT
from calib_data.images import SUFFIXES
from calib_data.sources.pdf import draw_page, page_count
from console.errors import InputError, require_package
from console.progress import say
from runtime.batch.source.page import PART_PAGES, Listed, Page, Part
from runtime.batch.source.page_counter import PageCounter
from runtime.batch.source.picture import open_picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from runtime.batch.storage import Storage

PDF = ".pdf"


@dataclass(frozen=True)
class Folder:
    """Each image is a row, and each page of a PDF, or each PDF."""

    storage: Storage
    """The folder, or a single file."""
    prompt: str | None
    """What is asked about each; None for READ_TEXT."""
    per_document: bool
    """Whether a PDF is one row."""
    kind: ClassVar[str] = "folder"

    def parts(self) -> Iterator[Listed]:
        """Images and PDFs by name, folder by folder. What is neither is passed over, which is said."""
        others, first = 0, ""
        with PageCounter() as counter:
            for name in self.storage.files():
                if self._is_pdf(name):
                    require_package("pypdfium2", "batch", f"{self.storage.place(name)}: reading PDF files")
                    counter.start()
                    yield from self._pdf(name, counter)
                elif PurePosixPath(name or self.storage.url).suffix.lower() in SUFFIXES:
                    yield Listed(Part(name, 0, 1), 1)
                else:
                    others, first = others + 1, first or name
        if others:
            say(
                f"{self.storage.url}: {others} files are neither images nor PDFs and are not read, the first is {first}"
            )

    def pages(self, part: Part) -> Iterator[Page]:
        """The pages of a part; an image has the number 1."""
        document, prompt = part.file or PurePosixPath(self.storage.url).name, self.prompt or READ_TEXT
        if not self._is_pdf(part.file):
            yield Page(document, 1, prompt, partial(self._image, part.file))
        elif part.first == 0:
            yield Page(document, None, prompt, partial(self._whole, part))
        for number in range(part.first, part.first + part.count) if part.first else ():
            yield Page(document, number, prompt, partial(self._drawn, part.file, number))

    def _pdf(self, name: str, counter: PageCounter) -> Iterator[Listed]:
        """Parts of PART_PAGES pages, or one for the whole. A PDF that cannot be read is a row with its error."""
        try:
            with self._located(name):
                total = counter.count(self.storage.local(name))
            if not total:
                raise InputError(f"{self.storage.place(name)}: has no pages")
        except InputError as error:
            yield Listed(Part(name, 0, 1, error=str(error)), 1)
            return
        if self.per_document:
            yield Listed(Part(name, 0, 1), total)
            return
        for first in range(1, total + 1, PART_PAGES):
            count = min(PART_PAGES, total + 1 - first)
            yield Listed(Part(name, first, count), count)

    def _is_pdf(self, name: str) -> bool:
        return PurePosixPath(name or self.storage.url).suffix.lower() == PDF

    def _image(self, name: str) -> Iterator[tuple[str, Image.Image]]:
        yield self.storage.place(name), open_picture(self.storage, name)

    def _drawn(self, name: str, number: int) -> Iterator[tuple[str, Image.Image]]:
        with self._located(name):
            place, path = self.storage.place(name), self.storage.local(name)
            yield f"{place}: page {number}", draw_page(path, number - 1, name=place, source=self.storage.url)

    def _whole(self, part: Part) -> Iterator[tuple[str, Image.Image]]:
        if part.error is not None:
            raise InputError(part.error)
        with self._located(part.file):
            total = page_count(self.storage.local(part.file))
        for number in range(1, total + 1):
            yield from self._drawn(part.file, number)

    @contextmanager
    def _located(self, name: str) -> Iterator[None]:
        """Have errors name the file where it is, not its local copy."""
        try:
            yield
        except InputError as error:
            if self.storage.folder is not None:
                raise
            raise type(error)(str(error).replace(str(self.storage.local(name)), self.storage.place(name))) from error
