"""Which kind of source a path or URL is."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from calib_data.images import SUFFIXES
from console.errors import InputError
from runtime.batch.source.folder import PDF, Folder
from runtime.batch.source.lines import Lines
from runtime.batch.source.table import SUFFIX, Table

if TYPE_CHECKING:
    from runtime.batch.source.page import Source
    from runtime.batch.storage import Storage


def open_source(storage: Storage, prompt: str | None, *, per_document: bool) -> Source:
    """The source at a path or URL; nothing is listed yet.

    prompt: of a page without its own; None for READ_TEXT. per_document: a PDF is one row. Raises InputError for what is
    no source.
    """
    source: Source
    if storage.is_file():
        suffix = PurePosixPath(storage.url).suffix.lower()
        if suffix == ".jsonl":
            source = Lines(storage, prompt)
        elif suffix == SUFFIX:
            source = Table(storage, prompt)
        elif suffix == PDF or suffix in SUFFIXES:
            source = Folder(storage, prompt, per_document)
        else:
            raise InputError(f"{storage.url}: is no .jsonl, .parquet, .pdf or image; give one of these, or a folder")
    elif not storage.exists():
        raise InputError(f"{storage.url}: no such file or folder")
    elif _holds_tables(storage):
        source = Table(storage, prompt)
    else:
        source = Folder(storage, prompt, per_document)
    if per_document and not isinstance(source, Folder):
        raise InputError(f"--per document: {storage.url} has a row for each picture; leave it out")
    return source


def source_version(source: Source) -> str | None:
    """What is another where the content of a source's file is; None for a folder.

    A folder whose kind is the same may get files: they are not in the plan. A file in it that has gone or changed is
    noticed when it is read, or is read as it is.
    """
    return source.storage.fingerprint() if source.storage.is_file() else None


def _holds_tables(storage: Storage) -> bool:
    """Whether the first folder with files has Parquet files; images next to them are their pictures."""
    for _, names in storage.walk():
        suffixes = {PurePosixPath(name).suffix.lower() for name in names}
        if suffixes & {SUFFIX, PDF, *SUFFIXES}:
            return SUFFIX in suffixes
    return False
