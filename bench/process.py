"""A command of this project in a process of its own, so that its memory is only its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError


@dataclass(frozen=True)
class Finished:
    """What a command printed, how long it took, and the most memory its process held, in MiB.

    seconds: by the clock. processor: of them, seconds that it computed, which a busy machine changes little.
    """

    output: str
    seconds: float
    processor: float
    peak: float


def run(module: str, *arguments: str) -> Finished:
    """Run `python -m module arguments`. Raises InputError with its last words where it fails.

    What the calling process holds when it starts another one counts as the other's peak: call it before any large
    allocation.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        said, warned = Path(temporary) / "stdout", Path(temporary) / "stderr"
        with said.open("wb") as stdout, warned.open("wb") as stderr:
            process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=stdout, stderr=stderr)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if process.returncode:
            words = (warned.read_text(encoding="utf-8") or said.read_text(encoding="utf-8")).strip()[-500:]
            raise InputError(f"`python -m {module} {' '.join(arguments)}` failed: {words}")
        processor = usage.ru_utime + usage.ru_stime
        return Finished(said.read_text(encoding="utf-8"), seconds, processor, usage.ru_maxrss / 1024)
