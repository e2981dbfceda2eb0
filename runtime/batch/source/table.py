"""Rows of Parquet files, with a column of pictures or of their paths."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from calib_data.document import READ_TEXT
from calib_data.images import read_image
from calib_data.sources.fields import IMAGES, NAMES, PROMPTS, given, name_of, question_of
from console.errors import InputError, naming
from runtime.batch.source.page import PART_PAGES, Listed, Page, Part, fail
from runtime.batch.source.picture import open_picture
from runtime.batch.source.rows import DamagedError, Rows, opened
from runtime.batch.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

SUFFIX = ".parquet"
_rows = Rows({*IMAGES, *PROMPTS, *NAMES})  # of this process: workers open parts of a file one after another
_Content = tuple[bytes | None, str | None]


@dataclass(frozen=True)
class Table:
    """Each row of the source is a row of the output."""

    storage: Storage
    """The file, or a folder of them."""
    prompt: str | None
    """What is asked in a row without a prompt; None for READ_TEXT."""
    kind: ClassVar[str] = "table"
    per_document: ClassVar[bool] = False
    """A row is what the file has one of."""

    def parts(self) -> Iterator[Listed]:
        """Every PART_PAGES rows of a file are a part. Raises InputError for a file without pictures."""
        for name in self.file_names():
            with opened(self.storage, name) as file:
                self._check(file.schema_arrow, name)
                total = file.metadata.num_rows
            for first in range(0, total, PART_PAGES):
                count = min(PART_PAGES, total - first)
                yield Listed(Part(name, first, count), count)

    def pages(self, part: Part) -> Iterator[Page]:
        """The rows of a part. One that is not valid, or cannot be decoded, is a page whose pictures raise the error."""
        for number, row in enumerate(_rows.read(self.storage, part.file, part.first, part.count), part.first):
            if isinstance(row, DamagedError):
                yield self._failed(part.file, number, str(row).removeprefix(f"{self.storage.place(part.file)}: "))
            else:
                yield self._page(row, part.file, number)

    def _page(self, record: pa.RecordBatch, file: str, number: int) -> Page:
        named = None
        try:
            row = record.to_pylist()[0]
            named = name_of(row)
            prompt = question_of(row, given(row, PROMPTS)) or self.prompt or READ_TEXT
        except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is no UTF-8, dates after 9999
            return self._failed(file, number, f"is not valid: {error}", named)
        images = next((row[name] for name in IMAGES if row.get(name) is not None), None)
        contents = [_content(image) for image in (images if isinstance(images, list) and images else [images])]
        document = named or contents[0][1] or self._name(file, number)
        pictures = partial(self._pictures, contents, file, f"{self.storage.place(file)}: row {number}")
        return Page(document, None, prompt, pictures)

    def _failed(self, file: str, number: int, reason: str, named: str | None = None) -> Page:
        error = InputError(f"{self.storage.place(file)}: row {number} {reason}")
        return Page(named or self._name(file, number), None, "", partial(fail, error))

    def _name(self, file: str, number: int) -> str:
        return f"{file or PurePosixPath(self.storage.url).name}: row {number}"

    def file_names(self) -> Iterator[str]:
        """Names of the Parquet files; "" for a single one."""
        return (name for name in self.storage.files() if not name or name.lower().endswith(SUFFIX))

    def _check(self, schema: pa.Schema, name: str) -> None:
        if not {*IMAGES} & {*schema.names}:
            columns = ", ".join(schema.names)
            wanted = ", ".join(IMAGES)
            raise InputError(
                f"{self.storage.place(name)}: has no column of pictures ({wanted}); its columns are {columns}"
            )

    def _pictures(self, contents: list[_Content], file: str, place: str) -> Iterator[tuple[str, Image.Image]]:
        """Open the pictures of a row; their paths are relative to the file, or to the folder of files."""
        folder = Storage(f"{self.storage.url}/-") if file else self.storage
        for content, path in contents:
            with naming(place):
                if content is not None:
                    picture = read_image(io.BytesIO(content), place)
                elif path is not None:
                    picture = open_picture(*folder.beside(path))
                else:
                    raise InputError("has no picture")
            yield place, picture


def _content(image: object) -> _Content:
    """The bytes of a picture and its path, of a column of bytes, of paths, or of both as Hugging Face keeps them."""
    content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, image)
    return content if isinstance(content, bytes) else None, path if isinstance(path, str) else None
