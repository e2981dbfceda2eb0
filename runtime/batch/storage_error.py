"""An error of a place, not of what is in it."""

from __future__ import annotations

import errno

from console.errors import InputError

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
