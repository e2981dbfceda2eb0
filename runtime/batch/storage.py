"""Folders that all machines see: a path, or a URL that fsspec reads, such as s3://bucket/scans."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from calib_data.images import is_of_user
from console.errors import InputError
from console.files import refuse_special

if TYPE_CHECKING:
    from collections.abc import Iterator

_COPIES = 8  # files that a process keeps of what is not local: the pages of one PDF are opened one after another

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
        if "://" not in self.url:  # fsspec would take what follows a :: in a name for another URL
            return LocalFileSystem(), str(Path(self.url).absolute())
        try:
            system, path = url_to_fs(self.url)
            return system, path
        except ImportError as error:
            raise InputError(f"{self.url}: {error}") from error  # it names the package to install
        except ValueError as error:
            raise InputError(f"{self.url}: is neither a path nor a URL that fsspec reads ({error})") from error

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
        with self._errors("", "read"):
            return bool(self._system.isfile(self._path("")))

    def holds(self, other: Storage) -> bool:
        """Whether another place is this one or in it."""
        if self.folder is not None and other.folder is not None:
            return other.folder.resolve().is_relative_to(self.folder.resolve())
        return f"{other.url}/".startswith(f"{self.url.rstrip('/')}/")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder."""
        with self._errors(name, "read"):
            return bool(self._system.exists(self._path(name)))

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
        with self._errors("", "listed"):
            for path, folders, files in self._system.walk(self._path(""), on_error="raise"):
                folders[:] = sorted(filter(is_of_user, folders))  # `walk` visits these
                below = PurePosixPath(path).relative_to(self._path("")).as_posix()
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

    def open(self, name: str = "") -> BinaryIO:
        """Open a file, to read parts of it."""
        if self.folder is not None:
            refuse_special(self.local(name), "give a file")
        with self._errors(name, "read"):
            file: BinaryIO = self._system.open(self._path(name), "rb")
        return file

    def size(self, name: str = "") -> int:
        """Bytes of a file."""
        with self._errors(name, "read"):
            return int(self._system.size(self._path(name)))

    def version(self, name: str) -> str:
        """What is another where a file has changed."""
        with self._errors(name, "read"):
            return str(self._system.ukey(self._path(name)))

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
        if "://" in name or PurePosixPath(name).is_absolute():
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
        return Path(self._path(name)) if self.folder is not None else _copies.get(self, name)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self._errors(name, "read"):
            self._system.get_file(self._path(name), str(path))

    def download_folder(self, path: Path) -> None:
        """Copy the folder with all that is in it to a local path."""
        with self._errors("", "read"):
            self._system.get(self._path(""), str(path), recursive=True)

    @property
    def _system(self) -> Any:  # noqa: ANN401 - fsspec has no types
        return self._found[0]

    def _path(self, name: str) -> str:
        root = self._found[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    @contextmanager
    def _errors(self, name: str, verb: str, advice: str = "") -> Iterator[None]:
        """Raise InputError where a file cannot be read or written."""
        try:
            yield
        except (OSError, ImportError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise InputError(f"{self.place(name)}: cannot be {verb} ({reason}){advice}") from error


def _write_local(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # as _PARTIAL has it
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class _Copies:
    """Local copies of files, the latest used. One that has changed is copied again."""

    def __init__(self) -> None:
        self._lock, self._folder = threading.Lock(), ""
        self._paths: OrderedDict[tuple[str, str, str], Path] = OrderedDict()

    def get(self, storage: Storage, name: str) -> Path:
        with self._lock:
            key = storage.url, name, storage.version(name)
            if key not in self._paths:
                path = Path(tempfile.mkdtemp(dir=self._made())) / PurePosixPath(name or storage.url).name
                storage.download(name, path)
                self._paths[key] = path
                if len(self._paths) > _COPIES:
                    _, oldest = self._paths.popitem(last=False)
                    shutil.rmtree(oldest.parent, ignore_errors=True)
            self._paths.move_to_end(key)
            return self._paths[key]

    def _made(self) -> str:
        if not self._folder:
            self._folder = tempfile.mkdtemp(prefix="exaone-docvlm-")
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


_copies = _Copies()
