"""Errors that a user can cause, and the one place that turns them into one line and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import typer


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: it names the file or argument and what to do."""


class EmptySplitError(InputError):
    """A source has documents, and none in the split that was asked for."""


class CannotGoOnError(InputError):
    """What a stopped run left does not serve any more: giving the same command again would not help."""


class NoMemoryError(InputError):
    """There is no memory for something, on the host or a card."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put the name of a document, or the place of a line, into an InputError of a block that is without."""
    try:
        yield
    except InputError as error:
        raise error if what in str(error) else InputError(f"{what}: {error}") from error


def run_command(app: typer.Typer) -> None:
    """Run a command line and exit: 0 done, 1 a failed gate, 2 wrong input or no memory (one line), 130 interrupted.

    A command raises `typer.Exit(code)` to choose another code. What it prints is UTF-8 everywhere.
    """
    import typer

    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows has a code page, which lacks Hangul
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:  # what the argument parser itself rejects
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(message)
    except InputError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:  # the plain install has what `runtime` needs, and no torch
        _fail(f"the package {error.name} is not installed; run: pip install '.[quantize]'")
    except BrokenPipeError:  # who reads what is printed has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # what no place nearer has words for: a full disk, a folder that cannot be written
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError as error:  # where nothing nearer knows what it was for
        _fail(f"out of memory ({str(error) or 'no size is known'}); close other programs, or use less of the input")
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def refuse_options(context: typer.Context) -> None:
    """Refuse options of a command line's own that stand in front of a command, where they would have no effect."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option, command = "--" + name.replace("_", "-"), context.invoked_subcommand
            raise InputError(f"{option} in front of `{command}` has no effect; options of `{command}` follow it")


def _fail(message: str) -> None:
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    sys.exit(2)
