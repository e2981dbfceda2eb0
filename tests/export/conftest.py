"""The export command inside the test's process, and readers with CUDA graphs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export.__main__ import app

from ..in_process import Command, in_process


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m export ARGUMENTS`; gives its exit code, stdout and stderr."""
    return in_process("export", app, capsys, monkeypatch)


@pytest.fixture(scope="session")
def on_cuda(exported: Callable[..., Path]) -> Callable[[str], Path]:
    """Readers with CUDA graphs by the names of `quantized`; kv8 (of w4) and bf16-kv8 have an int8 KV cache."""

    def folder(name: str) -> Path:
        if not name.endswith("kv8"):
            return exported(name, "cuda")
        return exported("w4" if name == "kv8" else name.removesuffix("-kv8"), "cuda", kv_bits=8)

    return folder
