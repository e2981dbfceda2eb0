"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The installed version, or "unknown"."""
    try:
        return version("exaone-docvlm")
    except PackageNotFoundError:  # run from its folder, not installed
        return "unknown"
