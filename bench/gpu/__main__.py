"""`python -m bench.gpu`: all that a GPU can tell in a few minutes, stage by stage, in order of value.

Each stage gets a share of the time and runs in a process of its own. What it measures is in the JSON file at once: a
cut loses nothing, and a stage that fails is recorded with its one line while the others go on. The table comes last.
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

from bench.gpu.bench import Bench
from bench.gpu.card import BANDWIDTH, PRODUCT
from bench.gpu.prepare import prepare
from bench.gpu.record import Outcome, Record, file_name, free_path
from bench.gpu.stage import OUT_OF_TIME, STAGES, Stage, read_figures, to_json
from bench.gpu.table import stage_lines
from console.errors import InputError, run_command
from console.progress import say

app = typer.Typer(add_completion=False)
RESULTS = Path(__file__).parents[1] / "results"
GRACE = 20.0  # seconds that a stage may take longer: it looks at the clock between two figures only
POLL = 0.2
LEAST = 1.0  # seconds: a stage with less time than that is not begun
IN_MEMORY = Path("/dev/shm")  # a folder whose files are in memory, where there is one
WANTED = 24 << 30  # bytes that the largest model takes there


def run_stage(stage: Stage, bench: Bench, record: Record) -> None:
    """Run one stage to its end, or until its time is up, and record its figures as they come."""
    outcome = Outcome(stage.name, stage.about)
    record.outcomes.append(outcome)
    figures, log = bench.scratch / f"{stage.name}.jsonl", bench.scratch / f"{stage.name}.log"
    started = time.time()
    with log.open("wb") as messages:
        command = [sys.executable, "-m", "bench.gpu.stage", stage.module or stage.name, to_json(bench), str(figures)]
        process = subprocess.Popen(command, stdout=messages, stderr=messages, start_new_session=True)
        while process.poll() is None:
            if time.time() > bench.ends + GRACE:
                outcome.cut = True
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            time.sleep(POLL)
            _update(outcome, record, figures, started)
    _update(outcome, record, figures, started)
    outcome.cut = outcome.cut or process.returncode == OUT_OF_TIME
    if process.returncode and not outcome.cut:
        outcome.error = _last_line(log) or f"ended with exit code {process.returncode}"
    record.save()


def _update(outcome: Outcome, record: Record, figures: Path, started: float) -> None:
    found = read_figures(figures)
    outcome.seconds = time.time() - started
    if len(found) > len(outcome.figures):
        outcome.figures = found
        record.save()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def ceilings(record: Record) -> dict[str, float]:
    """Bytes and operations a second, of what the stage `card` has measured."""
    found = {figure.name: figure.value for outcome in record.outcomes for figure in outcome.figures}
    scales = {BANDWIDTH: 1e9, PRODUCT: 1e12}
    return {name: float(found[name]) * scale for name, scale in scales.items() if name in found}


def run_all(stages: list[Stage], bench: Bench, seconds: float, record: Record) -> None:
    """Give each stage its share of what time is left, which grows where one before it took less."""
    ends = time.time() + seconds
    for number, stage in enumerate(stages):
        left, weights = ends - time.time(), [other.weight for other in stages[number:]]
        if left < LEAST:
            record.outcomes.append(Outcome(stage.name, stage.about, cut=True))
            record.save()
            continue
        share = left * stage.weight / sum(weights)
        say(f"{stage.name}: up to {share:.0f} s")
        told = replace(bench, stage=stage.name, ends=time.time() + share, ceilings=ceilings(record))
        run_stage(stage, told, record)
        outcome = record.outcomes[-1]
        say(f"{stage.name}: {outcome.seconds:.0f} s, {len(outcome.figures)} figures{_ending(outcome)}")


def _ending(outcome: Outcome) -> str:
    return f"; failed: {outcome.error}" if outcome.error else "; cut off" if outcome.cut else ""


def _scratch() -> Path | None:
    """A folder in memory where there is capacity for the largest model; None for the usual place."""
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free > WANTED else None
    except OSError:
        return None


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all stages together.")] = 8,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: to try the stages themselves.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Models and inputs in miniature.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A stage; repeat for several.", show_default="all")] = None,
    graphs: Annotated[
        Path | None, typer.Option(help="Folder of bench.gpu.prepare.", show_default="traced here, in minutes")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file.", show_default="bench/results/gpu-<card>-…")] = None,
) -> None:
    """Measure a GPU: is it right, how fast, what does it hold. Exit code 1 where a stage failed or was cut off."""
    names = [stage.name for stage in STAGES]
    if unknown := set(only or ()) - set(names):
        raise InputError(f"--only {', '.join(sorted(unknown))}: no such stage; the stages are {', '.join(names)}")
    if device == "cpu" and not tiny:
        raise InputError("--device cpu: only tries the stages, and in miniature; give --tiny too")
    command = " ".join(["python -m bench.gpu", *sys.argv[1:]])
    record = Record(output or free_path(RESULTS / file_name(device)), command, device, tiny)
    with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
        if device == "cuda" and not tiny and graphs is None:
            say("tracing the graphs of 33 B, minutes that do not count; python -m bench.gpu.prepare does it beforehand")
            graphs = Path(scratch)
            prepare(graphs)
        bench = Bench("", device, tiny, Path(scratch), graphs, 0.0, {})
        run_all([stage for stage in STAGES if not only or stage.name in only], bench, 60 * minutes, record)
    for outcome in record.outcomes:
        lines = stage_lines(outcome.about, outcome.seconds, outcome.error, outcome.cut, outcome.figures)
        print(*lines, sep="\n")
    print(f"{record.path}")
    if any(outcome.error or outcome.cut for outcome in record.outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(app)
