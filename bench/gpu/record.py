"""A run of `bench.gpu` as a JSON file, which is complete after every figure."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.gpu.figures import Figure
from bench.provenance import provenance
from runtime.ort.device import load_driver

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Outcome:
    """The result of a stage."""

    name: str
    title: str
    """Heading of its table."""
    seconds: float = 0.0
    error: str | None = None
    """The last line of its output, if it failed."""
    timed_out: bool = False
    """Whether its time ran out; the figures before that stay."""
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Record:
    """A run and the results of its stages."""

    path: Path
    command: str
    device: str
    tiny: bool
    outcomes: list[Outcome] = field(default_factory=list)

    def save(self) -> None:
        """Write the file; it is replaced atomically."""
        content = {
            "command": self.command,
            "provenance": provenance(self.command),
            "device": self.device,
            "tiny": self.tiny,
            "stages": [asdict(outcome) for outcome in self.outcomes],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path)


def read_record(path: Path) -> dict[str, Any]:
    """Read a recorded run, with its figures as `Figure`s."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for stage in content["stages"]:
        stage["figures"] = [Figure(**figure) for figure in stage["figures"]]
    return content


def file_name(device: str) -> str:
    """`gpu-<name>-<date>.json`, the name of the GPU in letters, digits and hyphens."""
    name = "cpu" if device == "cpu" else _gpu_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")
    return f"gpu-{slug}-{datetime.now(tz=UTC):%Y-%m-%d}.json"


def free_path(path: Path) -> Path:
    """The same path, or the next one that does not exist: `…-2.json`."""
    numbers = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    return next(free for free in numbers if not free.exists())


def _gpu_name() -> str:
    try:
        driver, name = load_driver(), ctypes.create_string_buffer(100)
    except OSError:
        return "none"
    driver.cuInit(0)
    driver.cuDeviceGetName(name, len(name), 0)
    return name.value.decode() or "unknown"
