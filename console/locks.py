"""Lock a folder, so that one run writes it at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from console.errors import InputError

LOCK = ".lock"
"""Name of the lock's file in the folder."""


def lock(folder: Path) -> FileLock:
    """Make a folder and lock it by a file LOCK in it; the caller releases it.

    Raises InputError if another run holds the lock, and OSError if the folder cannot be made or written.
    """
    file_lock = FileLock(folder / LOCK)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is being written by another run; wait for it or give another folder") from None
    return file_lock


def unlock(file_lock: FileLock) -> None:
    """Release the lock of a folder that stays, and remove its file."""
    with suppress(OSError):  # Windows removes the file on release
        Path(file_lock.lock_file).unlink()  # before the release: afterwards it may be another run's
    file_lock.release()
