"""Quantize EXAONE checkpoints to 4 or 8 bits or to NF4, calibrated on document images.

>>> from quantize import Settings, quantize
>>> report = quantize(Settings("EXAONE-4.5-33B", "EXAONE-4.5-33B-w4", documents="invoices/"))
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantize.pipeline import quantize
    from quantize.report import Report
    from quantize.settings import Settings

__all__ = ["Report", "Settings", "quantize"]

_MODULES = {"Report": "quantize.report", "Settings": "quantize.settings", "quantize": "quantize.pipeline"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): torch takes seconds, and `quantize.plan` does without."""
    # Huge pages: a temporary of 100 MB takes longer to map than to fill. PyTorch reads this when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
