"""The output folder: complete or absent, and written by one run at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from console.errors import CannotResumeError, InputError
from console.files import read_object
from console.locks import LOCK, lock
from quantize.calibration.hidden_states import ACTIVATIONS
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.journal import JOURNAL, Journal, difference, read_journal
from runtime.inputs.chat_template import additional_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REPORT = "quantization_report.json"
TIMES = "quantization_times.json"

# Files of a source folder that are not copied: weights, graphs, results of other runs, the model card.
NOT_COPIED_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".data", ".npz", ".lock", ".md", ".png"}
NOT_COPIED = {"config.json", "model.safetensors.index.json", "runtime.json", KV_SCALES, REPORT, TIMES}


def is_finished(output: Path, settings: dict[str, Any], read_digests: Callable[[], dict[str, str]]) -> bool:
    """Tell whether a folder already holds the result of these settings.

    read_digests: reads the documents and digests them; called where nothing else differs. A missing or empty folder is
    not finished. Raises InputError where the folder holds anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        report = read_object(output / REPORT)
        recorded = report["settings"]
    except (InputError, KeyError):
        raise InputError(f"{output} exists and holds something else; give another --output or remove it") from None
    if recorded != settings:
        what = difference(recorded, settings)
        raise InputError(f"{output} holds a result with {what}; give another --output or remove it")
    if report.get("documents") != read_digests():
        raise InputError(f"{output} holds a result with other documents; give another --output or remove it")
    _tidy(output)
    return True


@contextmanager
def output_folder(output: Path, settings: dict[str, Any]) -> Iterator[tuple[Path, Journal]]:
    """Lock `<output>.partial` to work in, and read the journal of a run with these settings in it.

    It is renamed to `output` on success. Wrong input removes it, unless steps are finished. After anything else, such
    as a kill or a full disk, it stays, and the same command resumes. Raises InputError where another run works in it,
    where it has other settings or is not from this command, where `output` cannot be a new folder, or where the disk
    is full.
    """
    if output.is_symlink() or os.path.ismount(output):
        raise InputError(f"{output} is a symbolic link or a mount point; give --output a new folder inside it")
    folder = output.with_name(output.name + ".partial")
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in (LOCK, JOURNAL)):
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
    """Remove the folder of a failed run, unless steps are finished; report a full disk."""
    try:
        yield
    except CannotResumeError:  # its message says what to do; the user removes the folder
        raise
    except InputError as error:
        if journal.steps:  # perhaps hours of work, and the cause may be a folder that is not mounted
            raise InputError(
                f"{error} ({folder} keeps what is finished: the same command resumes, other settings or "
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
    """Remove files of an unfinished run from a finished folder. A kill may come first, so `is_finished` does it too."""
    for path in (output / JOURNAL, output / LOCK, *output.glob(f"{ACTIVATIONS}-*")):
        path.unlink(missing_ok=True)


def companions(source: Path) -> list[Path]:
    """List the files next to the weights: tokenizer, chat templates, processor and generation settings, licence."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.name not in NOT_COPIED and path.suffix.lower() not in NOT_COPIED_SUFFIXES
        if path.is_file() and not path.name.startswith(".")
    ] + additional_templates(source)


def hash_companions(source: Path) -> str:
    """Hash the companions of a folder by name and content."""
    digest = hashlib.sha256()
    for path in companions(source):
        name = path.relative_to(source).as_posix()
        digest.update(f"{name} {path.stat().st_size}".encode(errors="surrogateescape") + path.read_bytes())
    return digest.hexdigest()


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companions of a folder."""
    for path in companions(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an indented JSON file, in ASCII: file names in it need not be UTF-8."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
