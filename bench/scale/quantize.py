"""Time, memory and disk of `quantize` at the widths of EXAONE 4.5 33B, step by step.

Quantizes random checkpoints of a few decoder layers, each with the command itself in a process of its own. More layers
should take more time, but no more memory. The time for all layers is extrapolated, and marked so.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from bench import process
from bench.provenance import provenance
from bench.scale.folders import RELEASED, make_checkpoint, shortened
from console.files import read_object
from console.progress import say
from quantize.output import REPORT, TIMES
from quantize.report import StepReport

MIB = 2**20
BLOCK = re.compile(r"(?P<kind>.*\.(?:blocks|layers))\.\d+")  # a step that is repeated for every block


@dataclass(frozen=True)
class Run:
    """One quantization."""

    layers: int
    """Decoder layers of the checkpoint."""
    steps: list[StepReport]
    documents: int
    """Calibration documents."""
    tokens: int
    """Calibration tokens."""
    peak: float
    """Peak memory of the process, in MiB."""
    disk: float
    """Largest size of the hidden states on disk, in MiB."""
    announced: float
    """The same, as the command estimated it before it began, in MiB."""

    @property
    def seconds(self) -> float:
        """Time of all steps."""
        return sum(step.seconds for step in self.steps)

    def mean_seconds(self) -> dict[str, float]:
        """Seconds of each kind of step; the mean over blocks of one kind."""
        kinds: dict[str, list[float]] = {}
        for step in self.steps:
            kinds.setdefault(kind(step), []).append(step.seconds)
        return {name: sum(seconds) / len(seconds) for name, seconds in kinds.items()}


def kind(step: StepReport) -> str:
    """The name of a step without the number of its block."""
    block = BLOCK.fullmatch(step.name)
    return block["kind"] if block else step.name


def quantize(model: Path, output: Path, layers: int, documents: int, device: str = "cpu") -> Run:
    """Quantize a checkpoint in a process of its own, and watch the disk. Raises InputError if that fails."""
    disk = 0

    def watch() -> None:
        nonlocal disk
        disk = max(disk, hidden_states(output.with_name(output.name + ".partial")))

    options = ["--model", str(model), "--output", str(output), "--device", device]
    calibration = ["--bits", "4", "--count", str(documents), "--reference", "0"]
    finished = process.run("quantize", *options, *calibration, watch=watch)
    steps = [StepReport(**step) for step in read_object(output / TIMES)["steps"]]
    totals = read_object(output / REPORT)["totals"]
    (announced,) = re.findall(r"take up to ([\d.]+) MiB", finished.messages)
    return Run(layers, steps, totals["documents"], totals["tokens"], finished.peak, disk / MIB, float(announced))


def hidden_states(folder: Path) -> int:
    """Bytes of hidden states in a folder now."""
    sizes = []
    for path in folder.glob("activations-*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # removed since it was listed
            continue
    return sum(sizes)


def measure(folder: Path, layers: int, vision_blocks: int, documents: int) -> Run:
    """Make a checkpoint in a folder, quantize it, and remove both."""
    model, output = folder / f"layers-{layers}", folder / f"layers-{layers}-w4"
    make_checkpoint(shortened(read_object(RELEASED), layers, vision_blocks), model)
    quantized = quantize(model, output, layers, documents)
    shutil.rmtree(model)
    shutil.rmtree(output)
    return quantized


def steps_table(run: Run) -> list[str]:
    """One row a step."""
    rows = ["| step | seconds | peak memory so far, MiB |", "|---|---|---|"]
    return rows + [f"| {step.name} | {step.seconds:.1f} | {step.peak_mib} |" for step in run.steps]


def layers_table(runs: list[Run]) -> list[str]:
    """One row a run, then the differences of their peaks."""
    rows = [
        "| decoder layers | seconds | peak memory, MiB | hidden states on disk, estimated, MiB | measured, MiB |",
        "|---|---|---|---|---|",
    ]
    rows += [f"| {r.layers} | {r.seconds:.0f} | {r.peak:.0f} | {r.announced:.1f} | {r.disk:.1f} |" for r in runs]
    differences = [
        f"\nPeak of {more.layers} against {fewer.layers} decoder layers: {more.peak / fewer.peak - 1:+.1%}."
        for fewer, more in pairwise(runs)
    ]
    return rows + differences


def extrapolation(run: Run) -> list[str]:
    """Time for all blocks of the release: the mean of each kind, times their number in the release."""
    released = read_object(RELEASED)
    counts = {
        "model.language_model.layers": released["text_config"]["num_hidden_layers"],
        "model.visual.blocks": released["vision_config"]["depth"],
    }
    rows, total = ["| step | seconds each | times | seconds, **extrapolated** |", "|---|---|---|---|"], 0.0
    for name, seconds in run.mean_seconds().items():
        times = counts.get(name, 1)
        total += times * seconds
        rows.append(f"| {name} | {seconds:.1f} | {times} | {times * seconds:.0f} |")
    rows.append(f"| all | | | {total:.0f} ({total / 3600:.1f} hours) |")
    return rows


def print_report(runs: list[Run]) -> None:
    """Print the steps of the shallowest run, all runs, and the release extrapolated from the deepest."""
    print(f"{runs[0].documents} calibration documents, {runs[0].tokens} tokens. The time for Hessians and forward")
    print("passes grows with the tokens; the time to solve does not.\n")
    print(*steps_table(runs[0]), "", *layers_table(runs), sep="\n")
    print(f"\nExtrapolated, not measured: all blocks of the release, from the run with {runs[-1].layers} layers.\n")
    print(*extrapolation(runs[-1]), sep="\n")


def main(
    layers: Annotated[list[int] | None, typer.Option(help="Decoder layers; give it again.", show_default="2 4")] = None,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    calibration_count: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 4,
    folder: Annotated[
        Path | None, typer.Option(help="Where checkpoints are made, 15 GB at 4 layers.", show_default="temporary")
    ] = None,
) -> None:
    """Quantize random checkpoints of a few layers; print time, memory and disk."""
    depths, runs = layers or [2, 4], []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for depth in depths:
            runs.append(measure(Path(temporary), depth, vision_blocks, calibration_count))
            say(f"{depth} decoder layers: {runs[-1].seconds:.0f} s, peak {runs[-1].peak:.0f} MiB")
    print_report(runs)
    options = " ".join(f"--layers {depth}" for depth in depths)
    options += f" --vision-blocks {vision_blocks} --calibration-count {calibration_count}"
    print(f"\n{provenance(f'python -m bench.scale quantize {options}')}")
