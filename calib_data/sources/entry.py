"""A document that is not opened yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from calib_data.document import Document


@dataclass(frozen=True)
class Entry:
    """A document that is not opened yet."""

    key: str
    """Decides the split. All questions about one picture have the same."""
    open: Callable[[], Document]
    """Makes the document. Raises InputError if its texts cannot be read; the picture is opened later."""
