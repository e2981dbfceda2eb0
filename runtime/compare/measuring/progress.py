"""Keeps the result of every document in documents.jsonl, so that a stopped comparison resumes."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from console.errors import InputError
from console.locks import lock, unlock
from runtime.compare.result import DocumentResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from calib_data.document import Document

PROGRESS = "documents.jsonl"


class Progress:
    """Results by the digest of their document, in a file of a folder; without a folder, in memory.

    settings: they must match for a comparison to resume. Raises InputError for a folder that holds another comparison,
    that another run writes to, or that cannot be written. The file is made with the first document, so an error before
    leaves nothing behind.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._results: dict[str, DocumentResult] = {}
        self._folder = folder
        self._file: BinaryIO | None = None
        self._settings = json.dumps(settings, sort_keys=True).encode()
        self._size = 0  # bytes of the file that are kept
        with ExitStack() as stack:
            if folder is not None:
                stack.enter_context(_locked(folder))
                self._file = self._open(folder, stack)
            self._stack = stack.pop_all()

    def _open(self, folder: Path, stack: ExitStack) -> BinaryIO | None:
        path = folder / PROGRESS
        if not path.exists():
            return None
        try:
            file = stack.enter_context(path.open("r+b"))
            content = file.read()
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error}); give another --output") from error
        # A line without an end was being written when the run stopped. Settings without documents do not count.
        settings, *lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
        if lines:
            self._read(settings, lines, path)
            self._size = len(settings) + sum(map(len, lines))
        return file

    def _read(self, settings: bytes, lines: Iterable[bytes], path: Path) -> None:
        if settings != self._settings + b"\n":
            raise InputError(f"{path.parent}: holds a comparison of other models or documents; give another --output")
        try:
            for line in lines:
                value = json.loads(line)
                self._results[value.pop("digest")] = DocumentResult.from_json(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is damaged ({error}); delete it and run again") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> DocumentResult:
        """The result of the document with this digest, which covers image, question and answer."""
        return self._results[key]

    def check_unchanged(self, documents: Iterable[Document]) -> None:
        """Raise InputError for a document that has changed since it was measured."""
        for document in documents:
            if document.digest() not in self:
                raise changed_error(document)

    def add(self, key: str, result: DocumentResult) -> None:
        """Keep the result of the document with this digest."""
        self._results[key] = result
        if self._folder is None:
            return
        if self._file is None:
            self._file = self._stack.enter_context((self._folder / PROGRESS).open("wb"))
        line = json.dumps({"digest": key, **result.to_json()}, ensure_ascii=False) + "\n"
        content = line.encode(errors="backslashreplace")  # file names need not be UTF-8; JSON reads the escapes back
        if not self._size:
            content = self._settings + b"\n" + content
        self._file.seek(self._size)
        self._file.truncate()
        self._file.write(content)
        self._file.flush()
        self._size += len(content)


def changed_error(document: Document) -> InputError:
    """The error for a page that was saved again while it was compared."""
    return InputError(f"{document.name} has changed since it was read; run the command again")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make and lock a folder. Remove it afterwards if it is new and still empty."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; give another --output")
    new = not folder.exists()
    try:
        taken = lock(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); give another --output") from error
    try:
        yield
    finally:
        unlock(taken)
        if new:
            with suppress(OSError):  # not empty: it holds a comparison
                folder.rmdir()
