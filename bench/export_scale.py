"""`python -m bench.export_scale`: time, memory and disk of exporting a folder of EXAONE 4.5 33B's shape.

The folder has every tensor that quantizing the release to 4 bits makes, MTP layer included, in sparse files: export
reads headers and the small tensors that describe weights, never the weights.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.process import Finished, run
from bench.provenance import provenance
from console.errors import run_command

app = typer.Typer(add_completion=False)
MIB = 2**20
TARGETS = ("cpu", "cuda")


@dataclass(frozen=True)
class Export:
    """One export. added: bytes that the folder has more than before, graphs: of them in graphs."""

    target: str
    process: Finished
    added: int
    graphs: int


def measure(folder: Path, target: str) -> Export:
    """Export a folder in a process of its own."""
    before = folder_bytes(folder)
    process = run("export", "--model", str(folder), "--device", target)
    graphs = sum(path.stat().st_size for path in folder.glob(f"*.{target}.onnx"))
    return Export(target, process, folder_bytes(folder) - before, graphs)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def table(exports: list[Export]) -> list[str]:
    """One row a target."""
    rows = [
        "| target | seconds | of processor time | peak memory, MiB | added to the folder, MiB | graphs, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for one in exports:
        about = f"{one.process.seconds:.0f} | {one.process.processor:.0f} | {one.process.peak:.0f}"
        rows.append(f"| {one.target} | {about} | {one.added / MIB:.2f} | {one.graphs / MIB:.2f} |")
    return rows


@app.command()
def main(
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 64,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 28,
    place: Annotated[
        Path | None, typer.Option("--folder", help="Where the folder is made.", show_default="temporary")
    ] = None,
) -> None:
    """Export a sparse folder of EXAONE 4.5 33B's shape for both targets; print time, memory and disk."""
    shape = ["--layers", str(layers), "--vision-blocks", str(vision_blocks)]
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        model = Path(temporary) / "model-w4"
        about = json.loads(run("bench.quantized_widths", "--output", str(model), *shape, "--sparse").output)
        exports = [measure(model, target) for target in TARGETS]
    print(
        f"{layers} decoder layers, {vision_blocks} vision blocks: {about['bytes'] / MIB:.0f} MiB of weights in "
        f"{about['files']} files, {about['bytes_on_disk'] / MIB:.1f} MiB of them on the disk\n"
    )
    print(*table(exports), sep="\n")
    print(f"\n{provenance(' '.join(['python -m bench.export_scale', *shape]))}")


if __name__ == "__main__":
    run_command(app)
