"""Counts the pages of PDFs in a process of its own: on some files PDFium crashes, never ends, or takes all memory."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from calib_data.sources.pdf import page_count
from console.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

_MEMORY = 4 << 30  # bytes that PDFium may take
_READY = "ready\n"


class PageCounter:
    """A process that counts. It is started anew after it has died, and ends when this one does."""

    def __init__(self, seconds: float = 60.0) -> None:
        """seconds: in which a file must be counted."""
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process if none runs. Raises InputError where that fails, which is no PDF's fault."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline() != _READY:
                raise InputError(f"the process that counts pages of PDFs has ended at its start ({self._end()})")

    def count(self, path: Path) -> int:
        """Pages of a PDF. Raises InputError as `page_count` does, and where that has ended the process."""
        if not self._ask(path):  # it has died since the last file
            self._end()
            self.start()
            self._ask(path)
        process, begun = self._process, time.monotonic()
        assert process is not None
        assert process.stdout is not None
        answer = process.stdout.readline()
        if not answer.endswith("\n"):
            how, late = self._end(), time.monotonic() - begun >= self._seconds
            what = f"takes longer than {self._seconds:g} s" if late else f"has crashed ({how})"
            raise InputError(f"{path}: its pages cannot be counted, PDFium {what}; print it to a new PDF")
        pages, error = json.loads(answer)
        if error:
            raise InputError(error)
        return int(pages)

    def _ask(self, path: Path) -> bool:
        """Ask for a file, unless the process has ended. Returns whether it was asked."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(str(path)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _end(self) -> str:
        """End the process, if it has not ended itself. Returns how it ended."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # it did not take all that was asked
                if pipe is not None:
                    pipe.close()
        code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def __enter__(self) -> PageCounter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _answer(seconds: float) -> None:
    """Count the files that are asked for, until the asking process ends."""
    with suppress(ImportError, ValueError, OSError):  # no such limit on this system
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    sys.stdout.write(_READY)
    sys.stdout.flush()
    with Path(os.devnull).open("w") as dropped:
        for line in sys.stdin:
            faulthandler.dump_traceback_later(seconds, exit=True, file=dropped)  # even where C code never returns
            path, answer = Path(json.loads(line)), (0, "")
            try:
                answer = page_count(path), ""
            except InputError as error:
                answer = 0, str(error)
            except Exception as error:  # the listing goes on
                answer = 0, f"{path}: its pages cannot be counted ({type(error).__name__}: {error})"
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _answer(float(sys.argv[1]))
