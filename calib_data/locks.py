"""A folder that one run writes at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from .errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

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
        raise InputError(f"{folder} is being written by another run; wait for it or give another --output") from None
    return taken
