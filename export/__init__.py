"""Adds ONNX graphs to a model folder. Its weights stay in the safetensors files.

from export import export, verify

export("exaone-w4", device="cuda")
assert verify("exaone-w4", device="cuda").passed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
