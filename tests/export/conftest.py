"""The export command inside the test's process, and readers with CUDA graphs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from console.errors import run_command
from export.__main__ import app

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m export ARGUMENTS`; gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def on_cuda(exported: Callable[..., Path]) -> Callable[[str], Path]:
    """Readers with CUDA graphs by the names of `quantized`; kv8 (of w4) and bf16-kv8 have an int8 KV cache."""

    def folder(name: str) -> Path:
        if not name.endswith("kv8"):
            return exported(name, "cuda")
        return exported("w4" if name == "kv8" else name.removesuffix("-kv8"), "cuda", kv_bits=8)

    return folder
