"""`python -m bench.scale`: time, memory and disk of quantizing at the widths of EXAONE 4.5 33B, layer by layer.

Makes checkpoints of a few decoder layers (`bench.released_widths`), quantizes each with the command itself in a process
of its own, and says what more layers change: time, and nothing else. What all of the release's layers would take is
extrapolated and marked so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from bench.provenance import provenance
from bench.released_widths import RELEASED
from console.errors import InputError, run_command
from console.files import read_object
from console.progress import say
from quantize.output import REPORT, TIMES
from quantize.report import StepReport

app = typer.Typer(add_completion=False)
MIB = 2**20
BLOCK = re.compile(r"(?P<kind>.*\.(?:blocks|layers))\.\d+")  # a step that there are as many of as blocks or layers


@dataclass(frozen=True)
class Run:
    """One quantization. peak, disk: the most memory of its process and bytes of hidden states at once, in MiB.

    announced: what it had said of its hidden states before it began, in MiB.
    """

    layers: int
    steps: list[StepReport]
    documents: int
    tokens: int
    peak: float
    disk: float
    announced: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def mean_seconds(self) -> dict[str, float]:
        """Seconds of each step, blocks of one kind as their mean."""
        kinds: dict[str, list[float]] = {}
        for step in self.steps:
            kinds.setdefault(kind(step), []).append(step.seconds)
        return {name: sum(seconds) / len(seconds) for name, seconds in kinds.items()}


def kind(step: StepReport) -> str:
    """The name of a step without the number of its block."""
    block = BLOCK.fullmatch(step.name)
    return block["kind"] if block else step.name


def quantize(model: Path, output: Path, layers: int, samples: int, device: str = "cpu") -> Run:
    """Quantize a checkpoint in a process of its own, and watch it. Raises InputError where that fails."""
    command = [sys.executable, "-m", "quantize", "--bits", "4", "--count", str(samples), "--reference", "0"]
    log = output.with_suffix(".log")
    with log.open("wb") as messages:
        options = ["--model", str(model), "--output", str(output), "--device", device]
        process = subprocess.Popen([*command, *options], stdout=messages, stderr=messages)
    pid = disk = 0
    while not pid:
        time.sleep(0.02)
        disk = max(disk, hidden_states(output.with_name(output.name + ".partial")))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text(encoding="utf-8")
    if process.returncode:
        raise InputError(f"`{' '.join(command)}` failed: {said.strip()[-500:]}")
    steps = [StepReport(**step) for step in read_object(output / TIMES)["steps"]]
    totals = read_object(output / REPORT)["totals"]
    (announced,) = re.findall(r"take up to ([\d.]+) MiB", said)
    return Run(
        layers,
        steps,
        totals["documents"],
        totals["tokens"],
        usage.ru_maxrss / 1024,
        disk / MIB,
        float(announced),
    )


def hidden_states(folder: Path) -> int:
    """Bytes of hidden states in a folder at this moment."""
    sizes = []
    for path in folder.glob("activations-*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # removed since it was listed
            continue
    return sum(sizes)


def measure(place: Path, layers: int, vision_blocks: int, samples: int) -> Run:
    """Make a checkpoint, quantize it, and remove both."""
    model, output = place / f"layers-{layers}", place / f"layers-{layers}-w4"
    make = [sys.executable, "-m", "bench.released_widths", "--output", str(model), "--layers", str(layers)]
    # Not in this process: what it holds would count as its child's memory.
    subprocess.run([*make, "--vision-blocks", str(vision_blocks)], check=True, stdout=subprocess.DEVNULL)
    run = quantize(model, output, layers, samples)
    shutil.rmtree(model)
    shutil.rmtree(output)
    return run


def steps_table(run: Run) -> list[str]:
    """Every step of a run."""
    rows = ["| step | seconds | peak of the process by then, MiB |", "|---|---|---|"]
    return rows + [f"| {step.name} | {step.seconds:.1f} | {step.peak_mib} |" for step in run.steps]


def layers_table(runs: list[Run]) -> list[str]:
    """Runs beside each other, and how far their peaks are apart."""
    rows = [
        "| decoder layers | seconds | peak memory, MiB | hidden states on disk, as announced, MiB | as measured, MiB |",
        "|---|---|---|---|---|",
    ]
    rows += [f"| {r.layers} | {r.seconds:.0f} | {r.peak:.0f} | {r.announced:.1f} | {r.disk:.1f} |" for r in runs]
    apart = [
        f"\nPeak of {more.layers} against {fewer.layers} decoder layers: {more.peak / fewer.peak - 1:+.1%}."
        for fewer, more in pairwise(runs)
    ]
    return rows + apart


def extrapolation(run: Run) -> list[str]:
    """What all blocks of the release would take: the mean of each kind, as often as the release has it."""
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
    """Print all tables: steps of the shallowest run, all runs, and the release extrapolated from the deepest."""
    print(f"{runs[0].documents} calibration documents, {runs[0].tokens} tokens. The time that Hessians and documents")
    print("take grows with the tokens; solving does not.\n")
    print(*steps_table(runs[0]), "", *layers_table(runs), sep="\n")
    print(f"\nExtrapolated, not measured: the release, each kind of step as long as in {runs[-1].layers} layers.\n")
    print(*extrapolation(runs[-1]), sep="\n")


@app.command()
def main(
    layers: Annotated[list[int] | None, typer.Option(help="Decoder layers; give it again.", show_default="2 4")] = None,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 4,
    folder: Annotated[
        Path | None, typer.Option(help="Where checkpoints are made, 15 GB at 4 layers.", show_default="temporary")
    ] = None,
) -> None:
    """Quantize checkpoints as wide as EXAONE 4.5 33B and a few layers deep; print time, memory and disk."""
    depths = layers or [2, 4]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        runs = []
        for depth in depths:
            runs.append(measure(Path(place), depth, vision_blocks, samples))
            say(f"{depth} decoder layers: {runs[-1].seconds:.0f} s, peak {runs[-1].peak:.0f} MiB")
    print_report(runs)
    options = " ".join(f"--layers {depth}" for depth in depths)
    command = f"python -m bench.scale {options} --vision-blocks {vision_blocks} --samples {samples}"
    print(f"\n{provenance(command)}")


if __name__ == "__main__":
    run_command(app)
