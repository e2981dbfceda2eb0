"""Errors that a user can cause, and the one place that turns them into one line and an exit code."""

from __future__ import annotations

import importlib.util
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from console.renamed import current_arguments
from console.streams import OutputClosedError, OutputError, finish_output, open_streams
from console.text import shorten_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer


BAD_INPUT = 2
"""Exit code for what the user can change; one line on stderr says it."""
# Exit codes of a command that a signal stopped, as shells have them: 128 + the signal's number.
INTERRUPTED = 130
"""SIGINT: Ctrl-C."""
CLOSED_PIPE = 141
"""SIGPIPE: whatever read the output has ended."""
TERMINATED = 143
"""SIGTERM: `kill`, `timeout`, a job's time limit."""


class InputError(Exception):
    """The user gave something wrong. The message is one line: it names the file or argument and what to do."""

    def __str__(self) -> str:
        """The message, without the middle of a value that is too long to read."""
        return shorten_message(super().__str__())


class EmptySplitError(InputError):
    """A source has documents, but none in the split that was asked for."""


class CannotResumeError(InputError):
    """A stopped run cannot be resumed: the same command would fail again."""


class NoMemoryError(InputError):
    """Something does not fit into the memory of the host or the GPU."""


class _TerminatedError(BaseException):
    """SIGTERM came. No Exception, as KeyboardInterrupt: nothing should catch it by accident."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix every InputError of a block with a document's name or a line's place, unless it has it already."""
    try:
        yield
    except InputError as error:
        raise error if what in str(error) else type(error)(f"{what}: {error}") from error


def require_package(package: str, extra: str, purpose: str) -> None:
    """Raise InputError if a package that only an extra installs is missing. purpose: what needs it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{purpose} needs {package}, install the extra '{extra}'")


def run_command(app: typer.Typer, renamed: Mapping[str, str] | None = None) -> None:
    """Run a command line and exit: 0 done, 1 failed gate, 2 bad input or no memory, 128 + N stopped by signal N.

    renamed: former option names and today's, as `current_arguments` takes them. All codes but 0, 1 and 141, a closed
    pipe, come with one line on stderr. A command raises `typer.Exit(code)` for another code. Output is UTF-8 on every
    system.
    """
    open_streams()
    with _stopped_by_sigterm():
        code, message = _run(app, renamed or {})
    with suppress(OutputError):  # what was printed before another error, which is the one to report
        sys.stdout.flush()
    if message:
        sys.stderr.write(shorten_message(" ".join(message.split())) + "\n")
    sys.exit(code)


def _run(app: typer.Typer, renamed: Mapping[str, str]) -> tuple[int, str]:
    """Run a command line. Returns its exit code, and the line that explains it or ""."""
    import typer

    try:
        code = app(args=current_arguments(sys.argv[1:], renamed), standalone_mode=False)
        finish_output()
    except OutputClosedError:
        return CLOSED_PIPE, ""
    except OutputError as error:
        return BAD_INPUT, f"error: {error}"
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    except _TerminatedError:
        return TERMINATED, "terminated"
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return BAD_INPUT, "error: a process that this command wrote to has ended"  # stdout has an error of its own
    except Exception as error:
        message = _explanation(error)
        if message is None:
            raise
        return BAD_INPUT, f"error: {message}"
    # Typer turns Ctrl-C into INTERRUPTED.
    return (code if isinstance(code, int) else 0), ("interrupted" if code == INTERRUPTED else "")


def _explanation(error: Exception) -> str | None:
    """Say what was wrong; None for a fault of this program."""
    import typer

    match error:
        case typer.TyperException():  # from the argument parser
            return error.format_message() if hasattr(error, "format_message") else str(error)
        case InputError():
            return str(error)
        case ModuleNotFoundError():  # the plain install has only what `runtime` needs, so no torch
            return f"the package {error.name} is not installed; run: pip install '.[quantize]'"
        case OSError():  # not handled closer to its cause: a full disk, a folder that cannot be written
            return f"{error.filename or 'a file'}: {error.strerror or error}"
        case MemoryError():  # not handled closer to its cause
            size = str(error) or "no size is known"
            return f"out of memory ({size}); close other programs, or use less of the input"
    return None


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise, once, so that files are cleaned up and worker processes end. The next one kills."""

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_options(context: typer.Context) -> None:
    """Raise InputError for an option in front of a command's name, where it would have no effect."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option, command = "--" + name.replace("_", "-"), context.invoked_subcommand
            raise InputError(f"{option} in front of `{command}` has no effect; options of `{command}` follow it")
