"""Errors that a user can cause, and the one place that turns them into one line and an exit code."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from console.renamed import current_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class InputError(Exception):
    """The user gave something wrong. The message is one line: it names the file or argument and what to do."""


class EmptySplitError(InputError):
    """A source has documents, but none in the split that was asked for."""


class CannotResumeError(InputError):
    """A stopped run cannot be resumed: the same command would fail again."""


class NoMemoryError(InputError):
    """Something does not fit into the memory of the host or the GPU."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix every InputError of a block with a document's name or a line's place, unless it has it already."""
    try:
        yield
    except InputError as error:
        raise error if what in str(error) else InputError(f"{what}: {error}") from error


def require_package(package: str, extra: str, purpose: str) -> None:
    """Raise InputError if a package that only an extra installs is missing. purpose: what needs it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{purpose} needs {package}, install the extra '{extra}'")


def run_command(app: typer.Typer, renamed: Mapping[str, str] | None = None) -> None:
    """Run a command line and exit: 0 done, 1 failed gate, 2 bad input or no memory, 130 Ctrl-C.

    renamed: former option names and today's, as `current_arguments` takes them. Codes 2 and 130 come with one line on
    stderr. A command raises `typer.Exit(code)` for another code. Output is UTF-8 on every system.
    """
    import typer

    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows has a code page, which lacks Hangul
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(args=current_arguments(sys.argv[1:], renamed or {}), standalone_mode=False)
    except typer.TyperException as error:  # from the argument parser
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(message)
    except InputError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:  # the plain install has only what `runtime` needs, so no torch
        _fail(f"the package {error.name} is not installed; run: pip install '.[quantize]'")
    except BrokenPipeError:  # the reader of stdout has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # not handled closer to its cause: a full disk, a folder that cannot be written
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError as error:  # not handled closer to its cause
        _fail(f"out of memory ({str(error) or 'no size is known'}); close other programs, or use less of the input")
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    _exit(code)


def refuse_options(context: typer.Context) -> None:
    """Raise InputError for an option in front of a command's name, where it would have no effect."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option, command = "--" + name.replace("_", "-"), context.invoked_subcommand
            raise InputError(f"{option} in front of `{command}` has no effect; options of `{command}` follow it")


def _exit(code: object) -> NoReturn:
    """End with a command's code. Typer turns Ctrl-C into INTERRUPTED."""
    if code == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    sys.exit(2)
