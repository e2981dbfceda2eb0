"""`python -m bench.gpu`: correctness, speed and memory on a GPU in a few minutes, stage by stage.

Each stage gets a share of the time and runs in a process of its own. Every figure is written to the JSON file at once,
so an interrupted run loses nothing. A stage that fails is recorded with its error, and the others run. The tables are
printed at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.gpu.bench import BANDWIDTH, PRODUCT, Bench
from bench.gpu.record import Outcome, Record, file_name, free_path
from bench.gpu.stage import OUT_OF_TIME, STAGES, Stage, read_figures, to_json
from bench.gpu.table import stage_lines
from console.errors import InputError, run_command
from console.progress import say

app = typer.Typer(add_completion=False)
RESULTS = Path(__file__).parents[1] / "results"
GRACE = 20.0  # seconds after the deadline until a stage is killed; it checks the time only between figures
POLL = 0.2  # seconds
LEAST = 1.0  # seconds; a stage with less time is not started
IN_MEMORY = Path("/dev/shm")  # a folder in memory, on Linux
NEEDED = 24 << 30  # bytes of the largest model


def run_stage(stage: Stage, bench: Bench, record: Record) -> None:
    """Run one stage until it ends or its time is up, and record its figures at once."""
    outcome = Outcome(stage.name, stage.title)
    record.outcomes.append(outcome)
    figures, log = bench.scratch / f"{stage.name}.jsonl", bench.scratch / f"{stage.name}.log"
    started = time.time()
    with log.open("wb") as messages:
        command = [sys.executable, "-m", "bench.gpu.stage", stage.module or stage.name, to_json(bench), str(figures)]
        process = subprocess.Popen(command, stdout=messages, stderr=messages, start_new_session=True)
        while process.poll() is None:
            if time.time() > bench.ends + GRACE:
                outcome.timed_out = True
                os.killpg(process.pid, signal.SIGKILL)  # and its child processes
            time.sleep(POLL)
            _update(outcome, record, figures, started)
    _update(outcome, record, figures, started)
    outcome.timed_out = outcome.timed_out or process.returncode == OUT_OF_TIME
    if process.returncode and not outcome.timed_out:
        outcome.error = _last_line(log) or f"ended with exit code {process.returncode}"
    record.save()


def _update(outcome: Outcome, record: Record, figures: Path, started: float) -> None:
    written = read_figures(figures)
    outcome.seconds = time.time() - started
    if len(written) > len(outcome.figures):
        outcome.figures = written
        record.save()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def ceilings(record: Record) -> dict[str, float]:
    """Bytes and operations a second that the stage `hardware` measured."""
    measured = {figure.name: figure.value for outcome in record.outcomes for figure in outcome.figures}
    scales = {BANDWIDTH: 1e9, PRODUCT: 1e12}
    return {name: float(measured[name]) * scale for name, scale in scales.items() if name in measured}


def run_all(stages: list[Stage], bench: Bench, seconds: float, record: Record) -> None:
    """Run the stages; each gets its share of the time left, which grows if earlier ones take less."""
    ends = time.time() + seconds
    for number, stage in enumerate(stages):
        left, weights = ends - time.time(), [other.weight for other in stages[number:]]
        if left < LEAST:
            record.outcomes.append(Outcome(stage.name, stage.title, timed_out=True))
            record.save()
            continue
        share = left * stage.weight / sum(weights)
        say(f"{stage.name}: up to {share:.0f} s")
        setting = replace(bench, stage=stage.name, ends=time.time() + share, ceilings=ceilings(record))
        run_stage(stage, setting, record)
        outcome = record.outcomes[-1]
        say(f"{stage.name}: {outcome.seconds:.0f} s, {len(outcome.figures)} figures{_ending(outcome)}")


def _ending(outcome: Outcome) -> str:
    return f"; failed: {outcome.error}" if outcome.error else "; its time ran out" if outcome.timed_out else ""


def _scratch() -> Path | None:
    """A folder in memory if the largest model fits there; None for the default temporary folder."""
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free > NEEDED else None
    except OSError:
        return None


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all stages together.")] = 8,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: only to test the stages.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Models and inputs in miniature.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A stage; repeat for several.", show_default="all")] = None,
    graphs: Annotated[
        Path | None, typer.Option(help="Folder of bench.gpu.prepare.", show_default="traced here, in minutes")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file.", show_default="bench/results/gpu-<name>-…")] = None,
) -> None:
    """Measure correctness, speed and memory on a GPU. Exit code 1 if a stage failed or its time ran out."""
    names = [stage.name for stage in STAGES]
    if unknown := set(only or ()) - set(names):
        raise InputError(f"--only {', '.join(sorted(unknown))}: no such stage; choose from {', '.join(names)}")
    if device == "cpu" and not tiny:
        raise InputError("--device cpu: only tests the stages in miniature; add --tiny")
    command = " ".join(["python -m bench.gpu", *sys.argv[1:]])
    record = Record(output or free_path(RESULTS / file_name(device)), command, device, tiny)
    with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
        if device == "cuda" and not tiny and graphs is None:
            from bench.gpu.prepare import prepare  # torch: no other part of this process needs it

            say("tracing the graphs of 33 B takes minutes, before --minutes begin; bench.gpu.prepare does it ahead")
            graphs = Path(scratch)
            prepare(graphs)
        bench = Bench("", device, tiny, Path(scratch), graphs, 0.0, {})
        run_all([stage for stage in STAGES if not only or stage.name in only], bench, 60 * minutes, record)
    for outcome in record.outcomes:
        lines = stage_lines(outcome.title, outcome.seconds, outcome.error, outcome.timed_out, outcome.figures)
        print(*lines, sep="\n")
    print(f"{record.path}")
    if any(outcome.error or outcome.timed_out for outcome in record.outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(app)
