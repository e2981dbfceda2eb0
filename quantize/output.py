"""The folder that is written: whole or not at all, and by one run at a time."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from calib_data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPORT = "quantization_report.json"
LOCK = ".lock"

# What a source folder may hold that is not the result's: weights, graphs, results of other runs, the model card.
NOT_COPIED_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".data", ".npz", ".lock", ".md"}
NOT_COPIED = {"config.json", "model.safetensors.index.json", "runtime.json", "kv_scales.json", REPORT}


def is_finished(output: Path, settings: dict[str, Any]) -> bool:
    """Tell whether a folder already holds the result of these settings.

    Raises InputError when it holds anything else; a missing or empty folder is not finished.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = json.loads((output / REPORT).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{output} exists and holds something else; give another --output or remove it") from None
    if found != settings:
        different = sorted(key for key in settings if found.get(key) != settings[key])
        raise InputError(
            f"{output} holds a result of other settings ({', '.join(different)}); give another --output or remove it"
        )
    return True


@contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """Give `<output>.partial` to work in, locked; it becomes `output` on success and is removed on an error.

    Raises InputError when another run works in it, when it is not ours, or when the disk is full.
    """
    partial = output.with_name(output.name + ".partial")
    if partial.exists() and not (partial / LOCK).exists():
        raise InputError(f"{partial} is in the way and not from this command; remove it")
    lock = FileLock(partial / LOCK)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{partial} is being written by another run; wait for it or give another --output") from None
    except OSError as error:
        raise InputError(f"{partial} cannot be written: {error.strerror}") from None
    try:
        for left in partial.iterdir():  # of a run that was killed
            if left.name != LOCK:
                left.unlink()
        yield partial
    except BaseException as error:
        _remove(partial, lock)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise InputError(f"the disk is full while writing {partial}; make room or give another --output") from None
        raise
    lock.release()
    (partial / LOCK).unlink(missing_ok=True)
    partial.rename(output)


def _remove(partial: Path, lock: FileLock) -> None:
    lock.release()
    shutil.rmtree(partial)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what makes weights a model: tokenizer, chat template, processor and generation settings, licence."""
    for path in sorted(source.iterdir()):
        known = path.name in NOT_COPIED or path.suffix.lower() in NOT_COPIED_SUFFIXES or path.name.startswith(".")
        if path.is_file() and not known:
            shutil.copyfile(path, target / path.name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
