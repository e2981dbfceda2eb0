"""Rows of Parquet files, with a column of pictures or of their paths."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from calib_data.document import READ_TEXT
from calib_data.images import open_image, read_image
from calib_data.sources.fields import IMAGES, PROMPTS, given, question_of
from console.errors import InputError, naming
from runtime.batch.source.page import PART_PAGES, Listed, Page, Part, fail
from runtime.batch.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

SUFFIX = ".parquet"
_NAMES = ("document", "id", "name")
_Content = tuple[bytes | None, str | None]


@dataclass(frozen=True)
class Table:
    """Each row of the source is a row of the output."""

    storage: Storage
    """The file, or a folder of them."""
    prompt: str | None
    """What is asked in a row without a prompt; None for READ_TEXT."""
    per_document: ClassVar[bool] = False
    """A row is what the file has one of."""

    def parts(self) -> Iterator[Listed]:
        """Every PART_PAGES rows of a file are a part. Raises InputError for a file without pictures."""
        for name in self.file_names():
            with self._opened(name) as file:
                self._check(file.schema_arrow, name)
                total = file.metadata.num_rows
            for first in range(0, total, PART_PAGES):
                count = min(PART_PAGES, total - first)
                yield Listed(Part(name, first, count), count)

    def pages(self, part: Part) -> Iterator[Page]:
        """The rows of a part."""
        for number, record in enumerate(self._rows(part), part.first):
            place, named = f"{self.storage.place(part.file)}: row {number}", None
            try:
                row = record.to_pylist()[0]
                named = next((str(row[name]) for name in _NAMES if row.get(name) is not None), None)
                prompt = question_of(row, given(row, PROMPTS)) or self.prompt or READ_TEXT
            except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is no UTF-8, dates after 9999
                yield Page(
                    named or f"row {number}", None, "", partial(fail, InputError(f"{place} is not valid: {error}"))
                )
                continue
            images = next((row[name] for name in IMAGES if row.get(name) is not None), None)
            contents = [_content(image) for image in (images if isinstance(images, list) and images else [images])]
            document = named or contents[0][1] or f"{part.file or PurePosixPath(self.storage.url).name}: row {number}"
            yield Page(document, None, prompt, partial(self._pictures, contents, part.file, place))

    def file_names(self) -> Iterator[str]:
        """Names of the Parquet files; "" for a single one."""
        return (name for name in self.storage.files() if not name or name.lower().endswith(SUFFIX))

    def _rows(self, part: Part) -> Iterator[pa.RecordBatch]:
        """The rows of a part, each for itself, read from the row groups that have them."""
        start, stop = part.first, part.first + part.count
        with self._opened(part.file) as file:
            columns = [name for name in file.schema_arrow.names if name in {*IMAGES, *PROMPTS, *_NAMES}]
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if begin < stop and end > start:
                    yield from _sliced(file, group, columns, start - begin, stop - begin)
                begin = end

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
                    beside, name = folder.beside(path)
                    picture = open_image(beside.local(name))
                else:
                    raise InputError("has no picture")
            yield place, picture

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        try:
            # Not `pre_buffer`, which reads a whole row group ahead, in a thread that may abort the process at its end.
            with self.storage.open(name) as content, pq.ParquetFile(content, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{self.storage.place(name)}: cannot be read as Parquet ({reason})") from error


def _sliced(file: pq.ParquetFile, group: int, columns: list[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows start to stop of a row group, which is read in small batches: it may be larger than memory."""
    at = 0
    for batch in file.iter_batches(PART_PAGES, row_groups=[group], columns=columns, use_threads=False):
        if at >= stop:
            return
        first, last = max(0, start - at), min(batch.num_rows, stop - at)
        yield from (batch.slice(row, 1) for row in range(first, last))
        at += batch.num_rows


def _content(image: object) -> _Content:
    """The bytes of a picture and its path, of a column of bytes, of paths, or of both as Hugging Face keeps them."""
    content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, image)
    return content if isinstance(content, bytes) else None, path if isinstance(path, str) else None
