"""Where a command's output goes: closed pipes, closed streams, a full disk, and signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import sys, threading, time, typer
from rich.console import Console
from console.errors import run_command
from console.progress import say

app = typer.Typer()

@app.command()
def rich_table(): Console().print("line\\n" * 5)
@app.command()
def written(): sys.stdout.write("line\\n" * 5)  # stays in the buffer until the end
@app.command()
def flushed():
    for _ in range(5): print("line", flush=True)
@app.command()
def echoed(): typer.echo("line\\n" * 100_000)
@app.command()
def threaded():
    thread = threading.Thread(target=lambda: print("line", flush=True))
    thread.start()
    thread.join()
@app.command()
def said():
    say("progress")
    print("line")
@app.command()
def failing_gate():
    sys.stdout.write("line\\n")
    raise typer.Exit(1)
@app.command()
def wait():
    print("ready", flush=True)
    try: time.sleep(60)
    finally: say("cleaned up")
@app.command()
def dead_process():
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    child.wait()
    child.stdin.write(b"line")
    child.stdin.flush()
run_command(app)
"""
PRINTING = ["rich-table", "written", "flushed", "echoed", "threaded", "said", "failing-gate", "--help"]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "command.py"
    path.write_text(COMMAND)
    return path


@pytest.fixture
def shell(script):
    """Runs `command.py NAME` in bash with redirections, and gives its exit code and what it said on stderr."""

    def run(name, redirections):
        line = f'"{sys.executable}" "{script}" {name} {redirections}'
        root = str(Path(__file__).parents[2])
        done = subprocess.run(
            ["bash", "-c", line], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    return run


def nobody_reads(script, name, stream, **environment):
    """Runs the command with a pipe without reader as `stream`, and gives its exit code and what it said elsewhere."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, script, name],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer},
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr if stream == "stdout" else done.stdout


@pytest.mark.parametrize("name", PRINTING)
def test_a_reader_that_has_ended_is_141_and_no_word(script, name):
    assert nobody_reads(script, name, "stdout") == (141, b"progress\n" if name == "said" else b"")


def test_an_unbuffered_stdout_is_guarded_too(script):
    assert nobody_reads(script, "written", "stdout", PYTHONUNBUFFERED="1") == (141, b"")


def test_progress_that_nobody_reads_does_not_end_a_run(script):
    assert nobody_reads(script, "said", "stderr") == (0, b"line\n")


@pytest.mark.parametrize("name", ["rich-table", "written", "echoed", "threaded", "failing-gate"])
def test_a_full_disk_is_one_line_and_no_failed_gate(shell, name):
    assert shell(name, "> /dev/full") == (
        2,
        "error: standard output: No space left on device; the output is incomplete\n",
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2> /dev/full"])
@pytest.mark.parametrize("name", ["said", "failing-gate"])
def test_streams_that_are_closed_change_no_exit_code(shell, name, closed):
    code, said = shell(name, closed)
    assert code == (1 if name == "failing-gate" else 0)
    assert said in ("", "progress\n")


def test_a_process_that_died_is_not_a_closed_output(shell):
    assert shell("dead-process", "") == (2, "error: a process that this command wrote to has ended\n")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"terminated\n")]
)
def test_a_signal_cleans_up_and_is_one_line(script, number, code, word):
    with subprocess.Popen(
        [sys.executable, script, "wait"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        running.send_signal(number)
        assert running.communicate(timeout=30) == (b"", b"cleaned up\n" + word)
    assert running.returncode == code
