"""`python -m bench.gpu.prepare`: trace the graphs for `bench.gpu --graphs` on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.gpu.folders import FOUR_LAYERS, WHOLE, archive_name, pack
from console.errors import run_command
from console.progress import say

app = typer.Typer(add_completion=False)


def prepare(output: Path) -> None:
    """Write an archive of each shape into a folder, in minutes."""
    output.mkdir(parents=True, exist_ok=True)
    for shape in (FOUR_LAYERS, WHOLE):
        archive = output / archive_name(shape)
        pack(shape, "cuda", archive)
        say(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


@app.command()
def main(output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("graphs")) -> None:
    """Trace the CUDA graphs of EXAONE 4.5 33B in every variant, and of four of its layers; 1 MB, without weights."""
    prepare(output)


if __name__ == "__main__":
    run_command(app)
