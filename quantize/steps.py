"""Run the steps of a quantization that are not done yet, and record each in the journal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from console.errors import InputError
from console.progress import track
from quantize.calibration.hidden_states import HiddenStates, keep_only
from quantize.report import StepReport, peak_mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from quantize.checkpoint.writer import CheckpointWriter
    from quantize.journal import Journal

Step = tuple[str, Callable[[], None]]
"""A step by its name: the path of a block, or what lies between two blocks."""


@dataclass(frozen=True)
class StepRunner:
    """Runs steps. After each, the journal holds all that a resumed run needs."""

    folder: Path
    """Folder of the run."""
    journal: Journal
    """The steps that are done."""
    writer: CheckpointWriter
    """Writes the new checkpoint."""
    states: Sequence[HiddenStates]
    """All hidden states."""
    device: str
    """Device that steps compute on, for messages."""

    def run(self, steps: Sequence[Step]) -> None:
        """Run those of all steps that the journal does not have."""
        for name, step in track(steps[len(self.journal.steps) :], "Quantizing"):
            self._run_step(name, step)

    def _run_step(self, name: str, step: Callable[[], None]) -> None:
        keep_only(self.folder, [layout for states in self.states for layout in states.layouts])
        started = time.perf_counter()
        with out_of_memory_named(name, self.device):
            step()
        journal = self.journal
        journal.steps.append(StepReport(name, round(time.perf_counter() - started, 3), peak_mib()))
        journal.states = {states.stream: states.current for states in self.states if states.current}
        journal.images = {states.stream: states.images for states in self.states if states.images}
        journal.writer = self.writer.state()
        journal.save(self.folder)


@contextmanager
def out_of_memory_named(step: str, device: str) -> Iterator[None]:
    """Raise InputError, naming the step, where it does not fit in memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch has an error class of its own for GPUs only
        if not isinstance(error, MemoryError) and not re.search("(out of|allocate) memory", str(error)):
            raise
        advice = "close other programs" if device == "cpu" else "free the GPU, or give --device cpu"
        raise InputError(f"out of memory at step {step}; {advice}") from None
