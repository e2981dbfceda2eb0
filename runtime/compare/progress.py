"""Documents of a comparison that are done, kept line by line so that a stopped one goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from calib_data.errors import InputError
from runtime.compare.checks import changed
from runtime.compare.measure import Measured

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import BinaryIO

    from calib_data.document import Document

PROGRESS = "documents.jsonl"


class Progress:
    """Measured documents, in a file of a folder; without a folder, in memory.

    settings: what must be the same for a comparison to go on. Raises InputError for a folder that holds another, or
    that cannot be written.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._file: BinaryIO | None = None
        self._done: dict[str, Measured] = {}
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, not a folder; give another --output")
        path, first = folder / PROGRESS, json.dumps(settings, sort_keys=True).encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]  # the last line was being written when the run was stopped
            self._read(whole, first, folder)
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write(first)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error}); give another --output") from error

    def _read(self, content: bytes, first: bytes, folder: Path) -> None:
        lines = content.split(b"\n")[:-1]
        if lines and lines[0] != first:
            raise InputError(f"{folder}: holds a comparison of other models or documents; give another --output")
        try:
            for line in lines[1:]:
                value = json.loads(line)
                self._done[value.pop("digest")] = Measured.from_json(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / PROGRESS}: is damaged ({error}); delete it and run again") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

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
        if self._file is not None:
            line = {"digest": key, **measured.to_json()}
            self._write(json.dumps(line, ensure_ascii=False).encode())

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        self._file.write(line + b"\n")
        self._file.flush()
