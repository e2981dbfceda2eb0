"""Out of memory in a step, as one line."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def out_of_memory_named(step: str, device: torch.device) -> Iterator[None]:
    """Raise InputError, naming the step and what to do, where it does not fit in memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch has a class of its own for cards only
        if not isinstance(error, MemoryError) and not re.search("(out of|allocate) memory", str(error)):
            raise
        remedy = "close other programs" if device.type == "cpu" else "free the card, or give --device cpu"
        raise InputError(f"out of memory at step {step}; {remedy}") from None
