"""The folder that is written: whole or not at all, and by one run at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from console.errors import CannotResumeError, InputError
from console.locks import LOCK, lock
from quantize.calibration.hidden_states import ACTIVATIONS
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.journal import JOURNAL, Journal, different, read_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REPORT = "quantization_report.json"
TIMES = "quantization_times.json"

# What a source folder may hold that is not the result's: weights, graphs, results of other runs, the model card.
NOT_COPIED_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".data", ".npz", ".lock", ".md", ".png"}
NOT_COPIED = {"config.json", "model.safetensors.index.json", "runtime.json", KV_SCALES, REPORT, TIMES}


def is_finished(output: Path, settings: dict[str, Any], read_documents: Callable[[], dict[str, str]]) -> bool:
    """Tell whether a folder already holds the result of these settings.

    read_documents: gives the digests of their documents; called where nothing else differs. Raises InputError when it
    holds anything else; a missing or empty folder is not finished.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        report = json.loads((output / REPORT).read_text(encoding="utf-8"))
        found = report["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{output} exists and holds something else; give another --output or remove it") from None
    if found != settings:
        raise InputError(f"{output} holds a result of {different(found, settings)}; give another --output or remove it")
    if report.get("documents") != read_documents():
        raise InputError(f"{output} holds a result of other documents; give another --output or remove it")
    _tidy(output)
    return True


@contextmanager
def output_folder(output: Path, settings: dict[str, Any]) -> Iterator[tuple[Path, Journal]]:
    """Give `<output>.partial` to work in, locked, and how far a run with these settings has come in it.

    It becomes `output` on success. Wrong input removes it, unless steps are finished in it. After anything else, such
    as a kill or a full disk, it stays, and the same command finds it again. Raises InputError when another run works in
    it, when it is not ours or has other settings, when it cannot take the place of `output`, or when the disk is full.
    """
    if output.is_symlink() or os.path.ismount(output):
        raise InputError(f"{output} is a symbolic link or a mount point; give --output a new folder inside it")
    folder = output.with_name(output.name + ".partial")
    if folder.exists() and any(folder.iterdir()) and not any((folder / ours).exists() for ours in (LOCK, JOURNAL)):
        raise InputError(f"{folder} is in the way and not from this command; remove it")
    try:
        held = lock(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        journal = read_journal(folder, settings)
        with _failures(folder, journal):
            yield folder, journal
        folder.rename(output)
    finally:
        held.release()
    _tidy(output)


@contextmanager
def _failures(folder: Path, journal: Journal) -> Iterator[None]:
    """Remove a folder in which nothing is finished when the input is wrong; say so where the disk is full."""
    try:
        yield
    except CannotResumeError:  # says itself what to do with the folder, which is the user's to remove
        raise
    except InputError as error:
        if journal.steps:  # hours, perhaps, and what is wrong may be a folder that is not mounted
            raise InputError(
                f"{error} ({folder} keeps what is finished: the same command goes on from there, other settings or "
                "another checkpoint need another --output or its removal)"
            ) from None
        shutil.rmtree(folder)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"the disk is full while writing {folder}; free some space and give the same command to resume"
        ) from None


def _tidy(output: Path) -> None:
    """Remove from a finished folder what only an unfinished run needs: last of all, so that a kill can come before."""
    for path in (output / JOURNAL, output / LOCK, *output.glob(f"{ACTIVATIONS}-*")):
        path.unlink(missing_ok=True)


def companions(source: Path) -> list[Path]:
    """List what makes weights a model: tokenizer, chat template, processor and generation settings, licence."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.name not in NOT_COPIED and path.suffix.lower() not in NOT_COPIED_SUFFIXES
        if path.is_file() and not path.name.startswith(".")
    ]


def hash_companions(source: Path) -> str:
    """Hash them by name and content."""
    digest = hashlib.sha256()
    for path in companions(source):
        digest.update(f"{path.name} {path.stat().st_size}".encode(errors="surrogateescape") + path.read_bytes())
    return digest.hexdigest()


def copy_companions(source: Path, target: Path) -> None:
    """Copy them."""
    for path in companions(source):
        shutil.copyfile(path, target / path.name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an indented JSON file, in ASCII: what it says of file names need not be UTF-8."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
