"""Local copies of files at URLs, for libraries that read paths: the last ones that a process has used."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from runtime.batch.storage_error import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = 8
"""Most files that a process keeps: the pages of one PDF are opened one after another."""
BYTES = 2 << 30
"""Most bytes of them, unless one file has more."""
_PREFIX = "exaone-docvlm-"


class LocalCopies:
    """Copies in a folder of this process. A file that has changed is copied again."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._folder: Path | None = None
        self._copies: OrderedDict[tuple[str, ...], tuple[Path, int]] = OrderedDict()

    def get(self, source: tuple[str, ...], name: str, copy: Callable[[Path], None]) -> Path:
        """The path of a copy, which stays until others were copied.

        source: what is another for another file, or version of it. name: of the copy. copy: makes it at a path. Raises
        StorageError where there is no folder for it, and what `copy` does.
        """
        with self._mutex:
            if source not in self._copies:
                self._copies[source] = self._made(name, copy)
            self._copies.move_to_end(source)
            self._delete_oldest()
            return self._copies[source][0]

    def _made(self, name: str, copy: Callable[[Path], None]) -> tuple[Path, int]:
        try:
            if self._folder is None:
                self._folder = _own_folder(Path(tempfile.gettempdir()))
            path = self._folder / uuid.uuid4().hex / name
            path.parent.mkdir()
        except OSError as error:
            raise StorageError(f"a temporary folder cannot be made ({error}); set TMPDIR to another one") from error
        try:
            copy(path)
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        return path, path.stat().st_size

    def _delete_oldest(self) -> None:
        while len(self._copies) > 1 and (
            len(self._copies) > FILES or sum(size for _, size in self._copies.values()) > BYTES
        ):
            _, (path, _) = self._copies.popitem(last=False)
            shutil.rmtree(path.parent, ignore_errors=True)


def _own_folder(parent: Path) -> Path:
    """Make a folder that is deleted when this process ends, or after it was killed, by the next that makes one."""
    _delete_stale(parent)
    folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"
    held = _lock_of(folder)
    held.acquire()  # before there is a folder to delete; the system releases it with the process
    folder.mkdir(mode=0o700)
    atexit.register(_delete, folder, held)
    return folder


def _delete_stale(parent: Path) -> None:
    """Delete the folders of processes that have ended. The lock of one that lives cannot be taken."""
    for path in parent.glob(f"{_PREFIX}*.lock"):
        folder = path.with_suffix("")
        held = _lock_of(folder)
        with suppress(Timeout, OSError):  # OSError: of another user
            held.acquire(timeout=0)
            _delete(folder, held)


def _delete(folder: Path, held: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(held.lock_file).unlink(missing_ok=True)
    held.release()


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f"{folder.name}.lock"))


local_copies = LocalCopies()
"""Those of this process."""
