"""Time, memory and disk of `export` for a folder of EXAONE 4.5 33B's shape.

The folder has every tensor of the 4-bit release, the MTP layer included, in sparse files: export reads only headers and
the small tensors that describe weights.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench import process
from bench.provenance import provenance
from bench.scale.folders import RELEASED, shortened
from bench.scale.quantized import make_quantized
from console.files import read_object

MIB = 2**20
TARGETS = ("cpu", "cuda")


@dataclass(frozen=True)
class Export:
    """One export."""

    target: str
    process: process.Finished
    added: int
    """Bytes that it adds to the folder."""
    graphs: int
    """Bytes of the graphs among them."""


def measure(folder: Path, target: str) -> Export:
    """Export a folder in a process of its own."""
    before = folder_bytes(folder)
    finished = process.run("export", "--model", str(folder), "--device", target)
    graphs = sum(path.stat().st_size for path in folder.glob(f"*.{target}.onnx"))
    return Export(target, finished, folder_bytes(folder) - before, graphs)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def table(exports: list[Export]) -> list[str]:
    """One row a target."""
    rows = [
        "| target | seconds | processor time, s | peak memory, MiB | added to the folder, MiB | graphs, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for export in exports:
        cost = f"{export.process.seconds:.0f} | {export.process.processor:.0f} | {export.process.peak:.0f}"
        rows.append(f"| {export.target} | {cost} | {export.added / MIB:.2f} | {export.graphs / MIB:.2f} |")
    return rows


def main(
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 64,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 28,
) -> None:
    """Export a sparse 4-bit folder for both targets; print time, memory and disk."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model-w4"
        make_quantized(shortened(read_object(RELEASED), layers, vision_blocks), model, sparse=True)
        weights = [path.stat() for path in model.glob("*.safetensors")]
        exports = [measure(model, target) for target in TARGETS]
    size, on_disk = sum(stat.st_size for stat in weights), sum(stat.st_blocks * 512 for stat in weights)
    print(
        f"{layers} decoder layers, {vision_blocks} vision blocks: {size / MIB:.0f} MiB of weights in "
        f"{len(weights)} files, which take {on_disk / MIB:.1f} MiB of the disk\n"
    )
    print(*table(exports), sep="\n")
    print(f"\n{provenance(f'python -m bench.scale export --layers {layers} --vision-blocks {vision_blocks}')}")
