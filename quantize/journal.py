"""The journal of a run: saved after every step, read by the same command to resume a run that was killed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from console.errors import CannotResumeError, InputError
from console.files import read_object
from console.locks import LOCK
from quantize.calibration.hidden_states import Layout
from quantize.report import LinearReport, StepReport

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.calibration.kv_ranges import Ranges

JOURNAL = ".journal.json"


@dataclass
class Journal:
    """The results of the steps that are done."""

    settings: dict[str, Any]
    """Settings of the run, as its report records them."""
    steps: list[StepReport] = field(default_factory=list)
    """The steps, in order."""
    states: dict[str, Layout] = field(default_factory=dict)
    """By stream: the file of hidden states that the next block reads."""
    images: dict[str, Layout] = field(default_factory=dict)
    """By stream: the file of image tokens."""
    documents: dict[str, str] = field(default_factory=dict)
    """By split: a digest of its documents."""
    linears: list[LinearReport] = field(default_factory=list)
    """The linears quantized so far."""
    kv_ranges: dict[str, Ranges] = field(default_factory=dict)
    """By the path of a decoder layer: ranges of its keys and values."""
    writer: dict[str, Any] | None = None
    """State of the checkpoint writer."""

    def save(self, folder: Path) -> None:
        """Replace the file atomically: a reader finds the old journal or the new one, whole."""
        path, draft = folder / JOURNAL, folder / f"{JOURNAL}.new"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)  # ASCII: file names need not be UTF-8
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def read_journal(folder: Path, settings: dict[str, Any]) -> Journal:
    """Read the journal of a run with these settings. Where there is none, clear the folder and start a new one.

    Raises InputError where the run had other settings.
    """
    if not (folder / JOURNAL).exists():
        for left in folder.iterdir():
            if left.name != LOCK:
                left.unlink()
        return Journal(settings)
    advice = f"remove {folder} and begin again"
    saved = read_object(folder / JOURNAL, advice)
    try:
        return _resumed(saved, folder, settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotResumeError(
            f"{folder / JOURNAL}: is not a journal of this command ({error!r}), {advice}"
        ) from error


def _resumed(saved: dict[str, Any], folder: Path, settings: dict[str, Any]) -> Journal:
    if saved["settings"] != settings:
        raise InputError(
            f"{folder} holds an unfinished run with {difference(saved['settings'], settings)}; "
            "give another --output, or remove it"
        )
    return Journal(
        settings,
        [StepReport(**step) for step in saved["steps"]],
        {stream: Layout(**layout) for stream, layout in saved["states"].items()},
        {stream: Layout(**layout) for stream, layout in saved["images"].items()},
        saved["documents"],
        [LinearReport(**linear | {"shape": tuple(linear["shape"])}) for linear in saved["linears"]],
        saved["kv_ranges"],
        saved["writer"],
    )


def difference(saved: dict[str, Any], settings: dict[str, Any]) -> str:
    """Name the settings that differ, or the revision if it does."""
    if saved.get("revision") != settings.get("revision"):
        return "another revision of this command, which gives another result"
    names = sorted(key for key in settings if saved.get(key) != settings[key])
    return f"other settings ({', '.join(names)})"
