"""A folder that one run writes at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from console.errors import InputError

LOCK = ".lock"


def lock(folder: Path) -> FileLock:
    """Make a folder and lock it, by a file LOCK in it; the caller releases it.

    Raises InputError when another run has it, and OSError when it cannot be made or written.
    """
    taken = FileLock(folder / LOCK)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        taken.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is being written by another run; wait for it or give another folder") from None
    return taken


def unlock(taken: FileLock) -> None:
    """Release the lock of a folder that stays, and leave nothing of it there."""
    with suppress(OSError):  # Windows removes it with its release
        Path(taken.lock_file).unlink()  # and not after: it may be another run's then
    taken.release()
