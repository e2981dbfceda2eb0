"""Folders that all machines see: a path, or a URL that fsspec reads, such as s3://bucket/scans."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec import get_filesystem_class
from fsspec.implementations.local import LocalFileSystem

from calib_data.images import is_of_user
from console.errors import InputError
from console.files import refuse_special
from runtime.batch.copies import local_copies
from runtime.batch.storage_error import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
_OF_A_NAME = FileNotFoundError, IsADirectoryError, NotADirectoryError  # the place itself is there
_PIECES, _PIECE = 16, 1 << 20  # of a file, for its fingerprint: their number and bytes
_PARTIAL = f".*.{'[0-9a-f]' * 32}.partial"


@dataclass(frozen=True)
class Storage:
    """A folder, or a single file, at a path or URL. Names are relative to it, with slashes; "" is itself."""

    url: str
    """Path or URL."""

    @classmethod
    def at(cls, place: str | Path) -> Storage:
        """The folder or file at a path, which is made absolute for processes with other working folders, or at a URL.

        Raises InputError for what is neither.
        """
        found = cls(os.fspath(place))
        return found if found.folder is None else cls(str(found.folder))

    @cached_property
    def _found(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        if not _URL.match(self.url):
            return LocalFileSystem(), str(Path(self.url).absolute())
        try:  # not `url_to_fs`, which takes what follows a :: for another URL, though keys and file names may have it
            kind = get_filesystem_class(self.url.partition("://")[0])
            return kind(**kind._get_kwargs_from_urls(self.url)), str(kind._strip_protocol(self.url))
        except ImportError as error:
            raise InputError(f"{self.url}: {error}") from error  # it names the package to install
        except ValueError as error:
            raise InputError(f"{self.url}: is neither a path nor a URL that fsspec reads ({error})") from error
        except Exception as error:  # some look for credentials at once, and raise what their library has
            raise InputError(f"{self.url}: cannot be opened ({_reason(error)})") from error

    @property
    def folder(self) -> Path | None:
        """The path in the local file system; None elsewhere."""
        system, root = self._found
        return Path(root) if isinstance(system, LocalFileSystem) else None

    def place(self, name: str) -> str:
        """The path or URL of a file, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self._kind("") == "file"

    def holds(self, other: Storage) -> bool:
        """Whether another place is this one or in it."""
        if self.folder is not None and other.folder is not None:
            return other.folder.resolve().is_relative_to(self.folder.resolve())
        return f"{other.url}/".startswith(f"{self.url.rstrip('/')}/")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder."""
        return self._kind(name) is not None

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; none where it does not exist."""
        with self._errors(folder, "listed"):
            self._system.invalidate_cache()
            try:
                paths = self._system.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(path).name for path in paths)

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder with the names of its files, sorted.

        Links to folders, and what is hidden or of a system, are passed over.
        """
        root = self._path("")
        with self._errors("", "listed"):
            # Not fsspec's own walk of local folders: it keeps size, owner and times of each of a million files.
            visited = (
                self._system.walk(root, on_error="raise") if self.folder is None else os.walk(root, onerror=_refuse)
            )
            for path, folders, files in visited:
                folders[:] = sorted(filter(is_of_user, folders))  # these are visited
                below = PurePosixPath(path).relative_to(root).as_posix()
                yield ("" if below == "." else below), sorted(filter(is_of_user, files))

    def files(self) -> Iterator[str]:
        """Names of all files in the folder and those below it, as `walk` has them; "" for a single file."""
        if self.is_file():
            yield ""
            return
        for folder, names in self.walk():
            yield from (f"{folder}/{name}" if folder else name for name in names)

    def read(self, name: str = "", start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or its bytes from start to end."""
        with self._errors(name, "read"):
            content: bytes = self._system.cat_file(self._path(name), start=start, end=end)
        return content

    def find(self, name: str) -> bytes | None:
        """Read a file that may be deleted meanwhile; None where it is not there."""
        with self._errors(name, "read"):
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    @contextmanager
    def opened(self, name: str = "") -> Iterator[BinaryIO]:
        """Open a file, to read parts of it, each by one request."""
        if self.folder is not None:
            refuse_special(self.local(name), "give a file")
        with self._errors(name, "read"), self._system.open(self._path(name), "rb", cache_type="none") as file:
            yield file

    def size(self, name: str = "") -> int:
        """Bytes of a file."""
        with self._errors(name, "read"):
            return int(self._system.size(self._path(name)))

    def version(self, name: str) -> str:
        """What is another where a file has changed."""
        with self._errors(name, "read"):
            return str(self._system.ukey(self._path(name)))

    def fingerprint(self, name: str = "") -> str:
        """What is another where the content of a file is: its size, and a digest of pieces, of a small file all of it.

        Unlike `version` it stays the same when the file is touched, copied or uploaded again.
        """
        size = self.size(name)
        starts = {*range(0, size, max(_PIECE, size // _PIECES)), max(0, size - _PIECE)} if size else set()
        digest = hashlib.sha256()
        for start in sorted(starts):
            digest.update(self.read(name, start, min(start + _PIECE, size)))
        return f"{size}-{digest.hexdigest()[:16]}"

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once: it has its whole content, or is as it was before.

        Object stores put a whole object; local files are renamed.
        """
        path = self._path(name)
        with self._errors(name, "written", "; what was finished is kept: run the same command again"):
            if self.folder is None:
                self._system.pipe_file(path, content)
            else:
                _write_local(Path(path), content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file at once, unless it is there: in a bucket, only the first of several writers does."""
        if self.folder is not None:  # which is locked
            self.write(name, content)
            return
        with self._errors(name, "written"):
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return

    def delete_partial(self, name: str) -> None:
        """Delete what killed processes left half written in a local folder."""
        if self.folder is not None:
            for path in (self.folder / name).glob(_PARTIAL):
                path.unlink(missing_ok=True)

    def beside(self, name: str) -> tuple[Storage, str]:
        """Where a file is whose path is relative to this file's folder, or absolute, or a URL: a storage and a name."""
        if _URL.match(name) or PurePosixPath(name).is_absolute():
            return Storage(name), ""
        return Storage(self.url.rpartition("/")[0] + "/"), name

    def make_folder(self, name: str = "") -> None:
        """Make a folder, with those above it."""
        with self._errors(name, "made"):
            self._system.makedirs(self._path(name), exist_ok=True)

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is left."""
        with self._errors(name, "deleted"):
            try:
                self._system.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def local(self, name: str = "") -> Path:
        """The path of a local file, or of a copy of another one, which stays until others were copied."""
        if self.folder is not None:
            return Path(self._path(name))
        version = self.url, name, self.version(name)
        return local_copies.get(version, PurePosixPath(name or self.url).name, partial(self.download, name))

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self._errors(name, f"copied to {path}"):
            self._system.get_file(self._path(name), str(path))

    def download_folder(self, path: Path) -> None:
        """Copy the folder with all that is in it to a local path."""
        with self._errors("", f"copied to {path}"):
            self._system.get(self._path(""), str(path), recursive=True)

    @property
    def _system(self) -> Any:  # noqa: ANN401 - fsspec has no types
        return self._found[0]

    def _path(self, name: str) -> str:
        root = self._found[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    def _kind(self, name: str) -> str | None:
        """Whether there is a "file", a "directory" or something else; None for nothing."""
        with self._errors(name, "read"):  # fsspec's own `exists` and `isfile` pass over all errors
            try:
                return str(self._system.info(self._path(name))["type"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    @contextmanager
    def _errors(self, name: str, verb: str, advice: str = "") -> Iterator[None]:
        """Raise InputError where a file cannot be read or written."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # libraries of object stores raise what is no OSError
            if self.folder is not None and not isinstance(error, OSError | ImportError):
                raise
            kind = InputError if isinstance(error, _OF_A_NAME) else StorageError
            raise kind(f"{self.place(name)}: cannot be {verb} ({_reason(error)}){advice}") from error


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(reason.split()) or type(error).__name__


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({_reason(error)})") from error


def _write_local(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # as _PARTIAL has it
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
