"""`python -m export`: add ONNX graphs for one target to a model folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from calib_data.errors import run_command

app = typer.Typer(add_completion=False)


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Folder that quantize wrote, or any EXAONE 4.x checkpoint.")] = Path(
        "reader-w4"
    ),
    target: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the graphs will run.")] = "cpu",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="CPU: keep activations in float32 (slower, for accuracy studies) instead of int8."
        ),
    ] = False,
    kv_bits: Annotated[
        Literal["16", "8"], typer.Option(help="8: keys and values as int8, by the ranges that quantize saw.")
    ] = "16",
) -> None:
    """Add vision and decoder graphs and runtime.json to a model folder. Weights stay in its safetensors files."""
    from export.graphs import export_folder  # torch takes seconds to import, and --help needs none of it

    start = time.perf_counter()
    bundle = export_folder(model, target, exact=exact, kv_bits=8 if kv_bits == "8" else 16)
    entry = bundle.targets[target]
    table = Table(
        title=f"{model}: {target}, {entry.dtype} activations, {entry.kv_dtype} KV cache"
        + (", exact" if entry.exact else "")
    )
    table.add_column("file")
    table.add_column("KiB", justify="right")
    for name in (entry.decoder, entry.vision, entry.mtp, *bundle.weights):
        if name:
            table.add_row(name, f"{(model / name).stat().st_size / 1024:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"exported in {time.perf_counter() - start:.0f} s; next: python -m runtime generate --model {model}")


if __name__ == "__main__":
    run_command(app)
