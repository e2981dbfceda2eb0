"""An error of a place, not of what is in it."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, TypeVar

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
WAITS = 1.0, 4.0
"""Seconds until a storage that has failed is asked again."""
_NAMES = "EIO", "ENOSPC", "EDQUOT", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EMFILE", "ENFILE", "ENOMEM"
_NUMBERS = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}


class StorageError(InputError):
    """A file cannot be read or written for now, such as without a network, rights, or space on a disk."""


def is_of_storage(error: BaseException | None) -> bool:
    """Whether an error, or what has caused it, is one of a place. Decoders raise OSError too, without a number."""
    while error is not None:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _NUMBERS):
            return True
        error = error.__cause__
    return False


def asked_again(call: Callable[[], Result]) -> Result:
    """What a call returns, which is made again where a storage has failed. Raises the last error, and all others."""
    for seconds in WAITS:
        try:
            return call()
        except InputError as error:
            if not is_of_storage(error):
                raise
        time.sleep(seconds)
    return call()
