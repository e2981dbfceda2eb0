"""The runtime's command inside the test's process, folders to damage, and transformers as the reference."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from console.errors import run_command
from runtime.__main__ import app
from runtime.model import Model

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m runtime ARGUMENTS`; gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runtime", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def copied(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    """An exported fp16 reader that a test may change."""
    return Path(shutil.copytree(exported("fp16"), tmp_path / "reader"))


@pytest.fixture(scope="session")
def reader(exported: Callable[[str], Path]) -> Model:
    """The fp16 reader on the CPU."""
    return Model(exported("fp16"), "cpu")
