"""Standard output and standard error of a command: UTF-8 everywhere, and one answer where they cannot be written."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable


class OutputError(Exception):
    """Standard output cannot be written. No OSError: Typer and Rich answer a broken pipe with exit code 1."""


class OutputClosedError(OutputError):
    """Whatever read standard output has ended, as `head` does."""


def open_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever they are. Text is UTF-8.

    What is closed becomes the null device, so that no file of the command gets its number. Writing to stdout raises
    OutputError, once. Nothing is raised for stderr: a run must not end because nobody reads its progress.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
    sys.stdout = _guarded(sys.stdout, _output_error)
    sys.stderr = _guarded(sys.stderr, lambda _: None)


def finish_output() -> None:
    """Write what is buffered. Raises OutputError where that or an earlier write failed, in whichever thread."""
    sys.stdout.flush()
    if isinstance(sys.stdout, _GuardedOutput) and sys.stdout.failure is not None:
        raise sys.stdout.failure


def _guarded(stream: TextIO, explain: Callable[[OSError], OutputError | None]) -> TextIO:
    """Guard a stream that Python opened. Others, such as those of a test, stay as they are."""
    return _GuardedOutput(stream, explain) if type(stream) is io.TextIOWrapper else stream


def _output_error(error: OSError) -> OutputError:
    # Windows has no EPIPE: there a pipe without reader is an invalid argument.
    if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
        return OutputClosedError()
    return OutputError(f"standard output: {error.strerror}; the output is incomplete")


class _GuardedOutput(io.TextIOWrapper):
    """A text stream that reports its first failure and drops what follows, also what is flushed as Python ends.

    explain: makes the error to raise of a failure, None for none. Only the main thread raises it: others would print a
    traceback.
    """

    def __init__(self, stream: io.TextIOWrapper, explain: Callable[[OSError], OutputError | None]) -> None:
        super().__init__(
            stream.buffer,
            encoding="utf-8",  # a pipe on Windows has a code page, which lacks Hangul
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream, self._explain = stream, explain  # the stream would close its buffer when it is freed
        self._usable = True
        self.failure: OutputError | None = None
        """Why it cannot be written."""

    def write(self, text: str) -> int:
        self._attempt(lambda: super(_GuardedOutput, self).write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(super().flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if not self._usable:
            return
        try:
            action()
        except OSError as error:
            self._usable, self.failure = False, self._explain(error)
            if self.failure is not None and threading.current_thread() is threading.main_thread():
                raise self.failure from None
