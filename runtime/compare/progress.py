"""Documents of a comparison that are done, kept line by line so that a stopped one goes on, by one run at a time."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from console.errors import InputError
from console.locks import lock, unlock
from runtime.compare.checks import changed
from runtime.compare.measure import Measured

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from calib_data.document import Document

PROGRESS = "documents.jsonl"


class Progress:
    """Measured documents, in a file of a folder; without a folder, in memory.

    settings: what must be the same for a comparison to go on. Raises InputError for a folder that holds another, that
    another run writes, or that cannot be written. The file comes with the first document: what is refused before leaves
    nothing.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._done: dict[str, Measured] = {}
        self._folder = folder
        self._file: BinaryIO | None = None
        self._first = json.dumps(settings, sort_keys=True).encode()
        self._size = 0  # of what is kept of the file
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
        # The last line was being written when the run was stopped; settings alone keep nothing.
        first, *lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
        if lines:
            self._read(first, lines, path)
            self._size = len(first) + sum(map(len, lines))
        return file

    def _read(self, first: bytes, lines: Iterable[bytes], path: Path) -> None:
        if first != self._first + b"\n":
            raise InputError(f"{path.parent}: holds a comparison of other models or documents; give another --output")
        try:
            for line in lines:
                value = json.loads(line)
                self._done[value.pop("digest")] = Measured.from_json(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is damaged ({error}); delete it and run again") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __getitem__(self, key: str) -> Measured:
        """What was measured of the document of this digest: of exactly that picture, question and answer."""
        return self._done[key]

    def require_unchanged(self, documents: Iterable[Document]) -> None:
        """Raise InputError where the page of one is not what was measured any more."""
        for document in documents:
            if document.digest() not in self:
                raise changed(document)

    def add(self, key: str, measured: Measured) -> None:
        """Keep one more document, by its digest."""
        self._done[key] = measured
        if self._folder is None:
            return
        if self._file is None:
            self._file = self._stack.enter_context((self._folder / PROGRESS).open("wb"))
        line = json.dumps({"digest": key, **measured.to_json()}, ensure_ascii=False) + "\n"
        content = line.encode(errors="backslashreplace")  # names of files need not be UTF-8; JSON reads it back
        if not self._size:
            content = self._first + b"\n" + content
        self._file.seek(self._size)
        self._file.truncate()
        self._file.write(content)
        self._file.flush()
        self._size += len(content)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder that no other run writes meanwhile, and remove it again where nothing came into it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; give another --output")
    new = not folder.exists()
    try:
        held = lock(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); give another --output") from error
    try:
        yield
    finally:
        unlock(held)
        if new:
            with suppress(OSError):  # it holds a comparison
                folder.rmdir()
