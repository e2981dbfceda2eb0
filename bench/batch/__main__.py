"""`python -m bench.batch`: Ray Data with one and two workers of one thread each, against the engine called directly.

The pages are rendered documents. Run nothing else meanwhile. A worker takes more than one core, as it opens pages while
its engine runs. So one worker is also measured on one core, which is half of what two have on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import psutil
import typer

from bench.process import run
from bench.provenance import provenance
from bench.timing import Quartiles, in_turns
from calib_data.document import READ_TEXT
from calib_data.rendered.render import documents
from console.errors import run_command
from console.progress import track
from runtime.options import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(add_completion=False)
FIRST = 256
"""Pages that are not counted: workers start, and fill their rows."""
NOTES = """\
Medians of the rounds and their quartiles, all in turns, in another order each round; ratios are medians within rounds.
Pages a second are counted after the first 256, until the last. Memory is the largest resident set of one process."""


@dataclass(frozen=True)
class Turn:
    """One run over all pages."""

    rate: float
    """Pages a second, after the first ones."""
    seconds: float
    """Of the whole command, its start included."""
    worker: float
    """Peak memory of the largest worker, in MiB; of the process where there is one."""
    driver: float
    """Peak memory of the command's own process, in MiB."""


@dataclass(frozen=True)
class Runner:
    """A way to answer pages."""

    name: str
    """What the table calls it."""
    workers: int
    """Worker processes; 0 for the engine alone."""
    cores: int | None = None
    """Cores for it and Ray together; None for all."""

    def turn(self, model: Path, pages: Path) -> Turn:
        """Answer all pages once."""
        memory = _Memory()
        with tempfile.TemporaryDirectory() as folder, _on(self.cores):
            done = run(*self._command(pages, folder), "--model", str(model), watch=memory.look)
            if self.workers:
                times = sorted((file.stat().st_mtime, _rows(file)) for file in Path(folder, "pages").iterdir())
            else:
                times = [(second, 1) for second in json.loads(done.output)]
        return Turn(_rate(times), done.seconds, memory.worker or memory.driver, memory.driver)

    def _command(self, pages: Path, output: str) -> list[str]:
        if not self.workers:
            return ["bench.batch.direct", "--pages", str(pages)]
        workers = ["--workers", str(self.workers), "--threads", "1"]
        return ["runtime", "batch", "--input", str(pages), "--output", output, *workers]


@contextmanager
def _on(cores: int | None) -> Iterator[None]:
    """Processes that are started meanwhile have that many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Memory:
    """Peak memory of a command and of its workers."""

    def __init__(self) -> None:
        self.driver = self.worker = 0.0
        self._last = 0.0

    def look(self) -> None:
        """Look at the processes that run now, a few times a second."""
        if time.monotonic() - self._last < 0.25:
            return
        self._last = time.monotonic()
        for process in psutil.Process().children(recursive=True):
            try:
                name, mib = process.cmdline()[0], process.memory_info().rss / 2**20
            except (psutil.Error, IndexError):
                continue
            if name.startswith("ray::MapWorker"):
                self.worker = max(self.worker, mib)
            elif Path(name) == Path(sys.executable):
                self.driver = max(self.driver, mib)


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)


def _rate(times: list[tuple[float, int]]) -> float:
    """Pages a second from when FIRST were done until the last. times: when, and how many pages at once."""
    done = np.cumsum([pages for _, pages in times])
    begin = int(np.searchsorted(done, FIRST))
    return float((done[-1] - done[begin]) / (times[-1][0] - times[begin][0]))


def render(folder: Path, count: int) -> None:
    """Draw pages, as files in a folder."""
    for number, document in enumerate(track(documents("evaluation", count, 0, None), "drawing", count)):
        document.image.save(folder / f"{number:06}.png")


RUNNERS = (
    Runner("the engine, called directly", 0),
    Runner("1 worker", 1),
    Runner("1 worker on one core", 1, cores=1),
    Runner("2 workers", 2),
)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Exported folder.")] = DEFAULT_MODEL,
    pages: Annotated[int, typer.Option(min=2 * FIRST, help="Pages to answer.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    many: Annotated[int, typer.Option(help="Pages of one more run with 2 workers, for its memory; 0 for none.")] = 0,
) -> None:
    """Answer pages with each runner in turns, and print pages a second and memory."""
    load = os.getloadavg()[0]
    folder = Path(tempfile.mkdtemp(prefix="exaone-docvlm-bench-"))
    try:
        turns: dict[str, list[Turn]] = {runner.name: [] for runner in RUNNERS}
        few = folder / "few"
        few.mkdir()
        render(few, pages)
        for number in track(range(rounds), "rounds"):
            for runner in in_turns(RUNNERS, number):
                turns[runner.name].append(runner.turn(model, few))
        print(*_table(turns), sep="\n")
        if many:
            large = folder / "many"
            large.mkdir()
            render(large, many)
            after, before = RUNNERS[-1].turn(model, large), turns[RUNNERS[-1].name][-1]
            print(f"\nMiB with {pages} and with {many} pages: of a worker {before.worker:.0f} and {after.worker:.0f}, ")
            print(f"of the command itself {before.driver:.0f} and {after.driver:.0f}; {after.rate:.1f} pages/s.")
    finally:
        shutil.rmtree(folder)
    print(f"\n{NOTES} Prompt: {READ_TEXT} Load average before: {load:.1f}.\n")
    print(provenance(f"python -m bench.batch --model {model} --pages {pages} --rounds {rounds} --many {many}"))


def _table(turns: dict[str, list[Turn]]) -> list[str]:
    lines = [
        "| | pages/s | to the first row | to 1 worker | to 1 on one core | whole, s | memory of a worker, MiB |",
        "|---" * 7 + "|",
    ]
    names = [runner.name for runner in RUNNERS]
    rates = {name: np.array([turn.rate for turn in turns[name]]) for name in names}
    for name in names:
        ratios = [str(Quartiles.of(rates[name] / rates[other])) for other in names[:3]]
        seconds = np.median([turn.seconds for turn in turns[name]])
        memory = max(turn.worker for turn in turns[name])
        lines.append(f"| {name} | {Quartiles.of(rates[name])} | {' | '.join(ratios)} | {seconds:.0f} | {memory:.0f} |")
    return lines


if __name__ == "__main__":
    run_command(app)
