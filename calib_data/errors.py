"""`InputError` under the name of development versions before 2026-11-28; it is in `console.errors`."""

from console.errors import InputError

__all__ = ["InputError"]
