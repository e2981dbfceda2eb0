"""Adds ONNX graphs to a model folder and verifies them. The weights stay in its safetensors files.

`export("exaone-w4", device="cuda")` writes the graphs; `verify("exaone-w4", device="cuda").passed` tells whether they
compute what the PyTorch modules compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import console.privacy  # noqa: F401 - before ONNX Runtime

if TYPE_CHECKING:
    from export.folder import export
    from export.verification.verify import verify

__all__ = ["export", "verify"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: torch takes seconds to import, and --help needs none of it
    if name == "export":
        from export.folder import export

        return export
    if name == "verify":
        from export.verification.verify import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
