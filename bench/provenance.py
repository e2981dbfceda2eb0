"""The line under every table of this folder: command, date, machine and versions."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version


def provenance(command: str) -> str:
    """The command, the date, the machine and the versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime-gpu", "torch", "transformers"))
    return (
        f"`{command}`, {datetime.now(tz=UTC):%Y-%m-%d}, {platform.machine()} with {os.cpu_count()} cores, "
        f"Python {sys.version.split()[0]}, {packages}."
    )
