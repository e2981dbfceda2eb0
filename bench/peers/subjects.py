"""The models that the quantizers are compared on, and their documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.peers.smollm2 import smollm2
from calib_data import READER
from console.files import read_object
from quantize.calibration.samples import read_samples
from quantize.model.families import model_config
from quantize.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from calib_data.splits import Split
    from quantize.calibration.samples import Sample

HELD_OUT = 11  # seed of the held-out documents
Name = Literal["reader", "smollm2"]


@dataclass(frozen=True)
class Subject:
    """A model to quantize, and where its documents come from."""

    name: Name
    """Name on the command line."""
    folder: Path
    """Checkpoint folder."""
    group_size: int
    """Weights that share a scale; it divides the inputs of every linear."""
    calibration: str = "rendered"
    """Source of calibration documents."""
    evaluation: str = "rendered"
    """Source of held-out documents."""

    def settings(self, output: Path | None = None, *, count: int, seed: int) -> Settings:
        """Settings that quantize only its decoder's linears."""
        return Settings(
            self.folder,
            output,
            group_size=self.group_size,
            vision_bits=16,
            head_bits=16,
            documents=self.calibration,
            count=count,
            seed=seed,
            reference=0,
        )

    def calibration_samples(self, count: int, seed: int) -> list[Sample]:
        """The documents that `settings` calibrates on."""
        return self._samples(self.calibration, count, seed, "calibration")

    def held_out_samples(self, count: int) -> list[Sample]:
        """Documents with true answers that no seed calibrates on."""
        return self._samples(self.evaluation, count, HELD_OUT, "evaluation")

    def _samples(self, documents: str, count: int, seed: int, split: Split) -> list[Sample]:
        settings = Settings(self.folder, documents=documents, count=count, seed=seed)
        return list(read_samples(settings, model_config(read_object(self.folder / "config.json")), split))


def make_subject(name: Name, cache: Path) -> Subject:
    """The bundled reader, or SmolLM2, which is downloaded into `cache` when it is missing."""
    if name == "reader":
        return Subject(name, READER, 128)
    folder = smollm2(cache)
    sources = (str(folder.parent / f"{split}.jsonl") for split in ("calibration", "evaluation"))
    return Subject(name, folder, 64, *sources)  # 576 inputs are no multiple of 128
