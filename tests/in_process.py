"""A command inside the test's process: it starts in no time, and its errors end it as they would a process."""

import sys
from collections.abc import Callable

import pytest
import typer

from console.errors import run_command

Command = Callable[..., tuple[int, str, str]]


def in_process(
    name: str, app: typer.Typer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """What runs `python -m NAME ARGUMENTS` and gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        return ended.value.code, *capsys.readouterr()

    return run
