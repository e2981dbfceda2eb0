"""`python -m bench.batch.paper`: what a run of a million pages takes apart from its answers, for docs/batch.md.

Listing, the plan, and Ray Data, which gives shards to a worker that does nothing.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from bench.provenance import provenance
from console.errors import run_command
from console.progress import say
from runtime.batch.cluster import cluster
from runtime.batch.plan import PLAN, Planned, read_plan, write_plan
from runtime.batch.pool import given_to
from runtime.batch.source.folder import Folder
from runtime.batch.source.page import Listed, Part
from runtime.batch.storage import Storage
from runtime.batch.workers.worker import Done

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(add_completion=False)
IMAGES, FOLDERS, PDFS, PAGES = 100_000, 100, 1000, 1_000_000
SETTINGS = {"input": "images"}


@dataclass
class Clock:
    """Seconds of a block."""

    seconds: float = 0.0


@contextmanager
def _timed() -> Iterator[Clock]:
    clock, start = Clock(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start


class Idle:
    """A worker that answers at once."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what a worker returns."""
        return {**asdict(Done(row["number"], row["rows"], 0, None, 1)), "said": "", "problem": None}


@app.command()
def main(
    images: Annotated[int, typer.Option(help="Images that are listed.")] = IMAGES,
    pdfs: Annotated[int, typer.Option(help="PDFs that are listed.")] = PDFS,
    pages: Annotated[int, typer.Option(help="Pages of the plan.")] = PAGES,
) -> None:
    """Time each, once, and print a table."""
    folder = Path(tempfile.mkdtemp(prefix="exaone-docvlm-bench-"))
    rows: list[tuple[str, str]] = []
    try:
        rows += _listing(folder, images, pdfs)
        planned = _plan(folder, pages, rows)
        _ray(planned, pages, rows)
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append((f"peak memory of the driver with {pages:,} pages", f"{peak:.0f} MiB"))
    print("| what | measured |\n|---|---|", *(f"| {name} | {value} |" for name, value in rows), sep="\n")
    print("\n" + provenance(" ".join(["python -m bench.batch.paper", *sys.argv[1:]])))


def _listing(folder: Path, images: int, pdfs: int) -> list[tuple[str, str]]:
    scans, books = folder / "scans", folder / "books"
    for name in ("one", "many"):
        (folder / name).mkdir()
    for number in range(images):
        path = scans / f"{number % FOLDERS:02}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    books.mkdir()
    drawn = [Image.new("RGB", (600, 800), "white") for _ in range(4)]
    drawn[0].save(folder / "book.pdf", save_all=True, append_images=drawn[1:])
    for number in range(pdfs):
        shutil.copyfile(folder / "book.pdf", books / f"{number:04}.pdf")
    with _timed() as listing:
        write_plan(Storage.at(folder / "one"), SETTINGS, Folder(Storage.at(scans), None, per_document=False).parts())
    with _timed() as counting:
        parts = sum(1 for _ in Folder(Storage.at(books), None, per_document=False).parts())
    assert parts == pdfs
    return [
        (f"list {images:,} images in {FOLDERS} local folders, with the plan", f"{listing.seconds:.1f} s"),
        (f"list {pdfs:,} local PDFs of 4 pages", f"{counting.seconds:.1f} s"),
    ]


def _plan(folder: Path, pages: int, rows: list[tuple[str, str]]) -> list[Planned]:
    output = Storage.at(folder / "many")
    listed = (Listed(Part(f"{number % FOLDERS:02}/{number:08}.png", 0, 1), 1) for number in range(pages))
    write_plan(output, SETTINGS, listed)
    with _timed() as reading:
        found = read_plan(output)
    assert found is not None
    size = output.size(PLAN) / 1e6
    rows.append(
        (f"plan of {pages:,} images", f"{len(found[1]):,} shards, {size:.0f} MB, read in {reading.seconds:.1f} s")
    )
    return found[1]


def _ray(planned: list[Planned], pages: int, rows: list[tuple[str, str]]) -> None:
    """As `answer_shards` does it, with a worker that does nothing."""
    say("starting Ray")
    with cluster(None):
        start = time.perf_counter()
        answered = given_to(Idle, [], planned, 1, num_cpus=1, num_gpus=0)
        seconds = [time.perf_counter() - start for _ in answered.iter_rows()]
    assert len(seconds) == len(planned)
    rate = (len(planned) - 1) / (seconds[-1] - seconds[0])
    rows.append(
        (f"hand the shards of {pages:,} pages to Ray Data, before the first is answered", f"{seconds[0]:.0f} s")
    )
    rows.append(("shards a second that the driver passes through one idle worker", f"{rate:.0f}"))


if __name__ == "__main__":
    run_command(app)
