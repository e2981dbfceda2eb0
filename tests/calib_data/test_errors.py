"""What a command prints and how it ends, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys
import typer
from rich.console import Console
from calib_data.errors import InputError, run_command

app = typer.Typer()

@app.command()
def read():
    sys.stdout.write("합계 12,500원 \\udcff\\n")
    Console().print("총액 ₩")
    Console(stderr=True).print("읽는 중")
    raise InputError("영수증.png: no such file")

run_command(app)
"""


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}],
    ids=["windows-pipe", "c"],
)
def test_korean_comes_out_as_utf8_whatever_the_locale(tmp_path, locale):
    script = tmp_path / "read.py"
    script.write_text(COMMAND, encoding="utf-8")
    environment = {**os.environ, **locale, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True)
    assert done.stdout.decode("utf-8").splitlines() == ["합계 12,500원 \\udcff", "총액 ₩"]
    assert done.stderr.decode("utf-8").splitlines() == ["읽는 중", "error: 영수증.png: no such file"]
    assert done.returncode == 2
