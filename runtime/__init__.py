"""Runs an exported model folder on ONNX Runtime. Never imports torch or transformers.

`from runtime import Model` is the Python API, `python -m runtime` the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import console.privacy  # noqa: F401 - before ONNX Runtime

if TYPE_CHECKING:
    from runtime.model import Model

__all__ = ["Model"]


def __getattr__(name: str) -> object:
    """Import `Model` when it is first asked for: some modules here are used without ONNX Runtime (PEP 562)."""
    if name == "Model":
        from runtime.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
