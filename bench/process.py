"""Run a command of this project in a process of its own, and measure that process alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL = 0.02  # seconds
# Linux counts the memory of the process that starts a command as the command's own, so a small one starts it.
LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
figures = [time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), *figures], file)
"""


@dataclass(frozen=True)
class Finished:
    """A command that succeeded."""

    output: str
    """What it wrote to stdout."""
    messages: str
    """What it wrote to stderr."""
    seconds: float
    """Wall-clock time."""
    processor: float
    """Processor time in seconds, which other load changes little."""
    peak: float
    """Peak resident memory in MiB."""


def run(module: str, *arguments: str, watch: Callable[[], None] | None = None) -> Finished:
    """Run `python -m module arguments`, and call `watch` every 20 ms meanwhile.

    Raises InputError with the end of its messages if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr, figures = (Path(folder) / name for name in ("stdout", "stderr", "figures"))
        command = [sys.executable, "-m", module, *arguments]
        with stdout.open("wb") as output, stderr.open("wb") as messages:
            launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(figures), *command]
            process = subprocess.Popen(launcher, stdout=output, stderr=messages)
            while _running(process):
                if watch is not None:
                    watch()
        written, said = (path.read_text(encoding="utf-8") for path in (stdout, stderr))
        code, *measured = json.loads(figures.read_text()) if figures.exists() else [process.returncode]
    if code:
        raise InputError(f"`python -m {module} {' '.join(arguments)}` failed: {(said or written).strip()[-500:]}")
    return Finished(written, said, *measured)


def _running(process: subprocess.Popen[bytes]) -> bool:
    """Wait for a moment; False if the process has ended."""
    try:
        process.wait(POLL)
    except subprocess.TimeoutExpired:
        return True
    return False
