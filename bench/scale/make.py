"""Write a folder of EXAONE 4.5 33B's widths with random weights, to try commands on."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations when it runs)
from typing import Annotated, Literal

import typer

from bench.scale.folders import RELEASED, make_checkpoint, shortened
from bench.scale.quantized import make_quantized
from console.errors import InputError
from console.files import read_object


def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    bits: Annotated[Literal["16", "4"], typer.Option(help="16: a checkpoint; 4: what quantize makes of it.")] = "16",
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 2,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="4 bits: leave the weights out; the files take no disk space.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a folder with random weights: a 16-bit checkpoint, or a quantized one."""
    if sparse and bits == "16":
        raise InputError("--sparse: only with --bits 4")
    config = shortened(read_object(RELEASED), layers, vision_blocks)
    if bits == "16":
        make_checkpoint(config, output, seed)
    else:
        make_quantized(config, output, sparse=sparse, seed=seed)
    files = [path.stat() for path in output.glob("*.safetensors")]
    size, on_disk = sum(stat.st_size for stat in files), sum(stat.st_blocks * 512 for stat in files)
    print(f"{output}: {size / 2**30:.2f} GiB in {len(files)} files, {on_disk / 2**30:.2f} GiB of the disk")
