"""How far a run has come: written after every step, read by the same command when it goes on after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.locks import LOCK
from quantize.calibration.hidden_states import Layout
from quantize.report import LinearReport, StepReport

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.calibration.kv_ranges import Ranges

JOURNAL = ".journal.json"


@dataclass
class Journal:
    """What the steps done so far have left. settings: of the run, as they are recorded in its report.

    states, images: of each split of documents, the files of hidden states in front of the next block and of image
    tokens. documents: their digests. kv_ranges: by the path of a decoder layer. writer: state of the checkpoint writer.
    """

    settings: dict[str, Any]
    steps: list[StepReport] = field(default_factory=list)
    states: dict[str, Layout] = field(default_factory=dict)
    images: dict[str, Layout] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    linears: list[LinearReport] = field(default_factory=list)
    kv_ranges: dict[str, Ranges] = field(default_factory=dict)
    writer: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Replace the file in one instant: whoever reads it finds the old one or the new one, whole."""
        path, draft = folder / JOURNAL, folder / f"{JOURNAL}.new"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)  # ASCII: names of files need not be UTF-8
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def read_journal(folder: Path, settings: dict[str, Any]) -> Journal:
    """Read the journal of a run with these settings; a new one, in a cleared folder, where none has been written.

    Raises InputError where the run had other settings.
    """
    if not (folder / JOURNAL).exists():
        for left in folder.iterdir():
            if left.name != LOCK:
                left.unlink()
        return Journal(settings)
    found = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise InputError(
            f"{folder} holds an unfinished run of {different(found['settings'], settings)}; "
            "give another --output, or remove it"
        )
    return Journal(
        settings,
        [StepReport(**step) for step in found["steps"]],
        {split: Layout(**layout) for split, layout in found["states"].items()},
        {split: Layout(**layout) for split, layout in found["images"].items()},
        found["documents"],
        [LinearReport(**linear | {"shape": tuple(linear["shape"])}) for linear in found["linears"]],
        found["kv_ranges"],
        found["writer"],
    )


def different(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the settings that differ, or say that the revision does."""
    if found.get("revision") != wanted.get("revision"):
        return "another revision of this command, which gives another result"
    names = sorted(key for key in wanted if found.get(key) != wanted[key])
    return f"other settings ({', '.join(names)})"
