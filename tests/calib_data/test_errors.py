"""How a command ends that found no memory."""

import sys

import numpy as np
import pytest
import typer

from calib_data.errors import run_command


def test_a_lack_of_memory_is_one_line(capsys, monkeypatch):
    app = typer.Typer()
    app.command()(lambda: np.empty(1 << 58))
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (Unable to allocate 2.00 EiB")
    assert said.count("\n") == 1
