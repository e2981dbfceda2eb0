"""`python -m bench.gpu.prepare`: the graphs of 33 B for `bench.gpu --graphs`, traced where no GPU waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calib_data.errors import run_command
from calib_data.progress import say

from .folders import VARIANTS, WHOLE, Shape, pack

app = typer.Typer(add_completion=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Archive to write.")] = Path("released.tar.gz"),
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = WHOLE.layers,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = WHOLE.vision_blocks,
) -> None:
    """Trace the CUDA graphs of EXAONE 4.5 33B in every variant, and pack them without weights: about 1 MB."""
    pack(Shape(layers, vision_blocks), "cuda", list(VARIANTS), output)
    say(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_command(app)
