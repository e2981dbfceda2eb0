"""What a command prints and how it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from console.errors import InputError, require_package, run_command

COMMAND = """
import sys
import typer
from rich.console import Console
from console.errors import InputError, run_command

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


def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, tmp_path):
    app = typer.Typer()
    app.command()(lambda: tmp_path.write_text("no file"))
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_nobody_reads_to_the_end(tmp_path):
    """`command | head -1` ends without a word."""
    script = tmp_path / "print.py"
    script.write_text(
        "import typer\nfrom console.errors import run_command\napp = typer.Typer()\n"
        "@app.command()\ndef lines():\n    for n in range(10**6): print(n)\nrun_command(app)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(f"{sys.executable} {script} | head -1", env=environment, capture_output=True, shell=True)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        "import time, typer\nfrom console.errors import run_command\napp = typer.Typer()\n"
        "@app.command()\ndef wait():\n    print('ready', flush=True)\n    time.sleep(60)\nrun_command(app)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=30) == (b"", b"interrupted\n")
    assert running.returncode == 130


def test_a_missing_package_names_its_extra():
    require_package("numpy", "data", "this")
    with pytest.raises(InputError, match=r"^a\.pdf: reading PDF files needs nowhere, install the extra 'data'$"):
        require_package("nowhere", "data", "a.pdf: reading PDF files")
