"""The model's folder on this machine: where it is, or a copy of it, made once a machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from console.errors import InputError
from runtime.ort.manifest import FILE

if TYPE_CHECKING:
    from runtime.batch.storage import Storage

CACHE = "EXAONE_DOCVLM_CACHE"
"""Variable with the folder for copies; ~/.cache/exaone-docvlm without it."""
_PARTIAL, _USED = ".partial", ".used"

_held: dict[Path, FileLock] = {}  # copies that this process uses until it ends


def local_model(storage: Storage) -> Path:
    """Path of an exported folder. One at a URL is copied; processes of a machine wait for the first to copy it.

    A folder whose runtime.json has changed is copied anew, and its old copies are deleted when no process uses them.
    Raises InputError where it cannot be copied.
    """
    if storage.folder is not None:
        return storage.folder
    require_manifest(storage)
    cache = os.environ.get(CACHE, "~/.cache/exaone-docvlm")
    try:
        copies = Path(cache).expanduser() / "models" / _digest(storage.url.encode())
        copies.mkdir(parents=True, exist_ok=True)
        with FileLock(copies / "lock"):
            return _copied(storage, copies / _digest(storage.read(FILE)))
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
        raise InputError(
            f"{cache}: cannot hold a copy of the model ({error}); set {CACHE} to another folder"
        ) from error


def require_manifest(storage: Storage) -> None:
    """Raise InputError for a folder that was not exported."""
    if not storage.exists(FILE):
        raise InputError(f"{storage.url}: has no {FILE}; give a model folder that export has added graphs to")


def _copied(storage: Storage, folder: Path) -> Path:
    """Copy a model, unless it was, and delete what nobody needs beside it."""
    _hold(folder)
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder and (other.suffix == _PARTIAL or not _is_used(other)):
            shutil.rmtree(other, ignore_errors=True)
    if not folder.exists():
        partial = folder.with_suffix(_PARTIAL)
        try:
            storage.download_folder(partial)
        except InputError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(f"{error}; {CACHE} names the folder of copies") from error
        partial.rename(folder)
    return folder


def _hold(folder: Path) -> None:
    """Mark a copy as used until this process ends, when the system releases the lock."""
    if folder not in _held:
        lock = FileLock(folder.with_suffix(f".{uuid.uuid4().hex}{_USED}"))
        lock.acquire()
        _held[folder] = lock


def _is_used(folder: Path) -> bool:
    """Whether a living process uses a copy. Marks of those that have ended are deleted."""
    used = False
    for mark in folder.parent.glob(f"{folder.name}.*{_USED}"):
        try:
            with FileLock(mark, timeout=0):
                mark.unlink()
        except Timeout:
            used = True
    return used


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
