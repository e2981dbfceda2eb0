"""`python -m export`: add ONNX graphs for one target to a model folder, and verify those that are there."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from console.errors import InputError, refuse_options, run_command

if TYPE_CHECKING:
    from export.verification.verify import Verification

app = typer.Typer(add_completion=False)
DEFAULT_MODEL = Path("reader-w4")


@app.callback(invoke_without_command=True)
def export(
    context: typer.Context,
    model: Annotated[
        Path, typer.Option(help="Folder that quantize wrote, or any EXAONE 4.x checkpoint.")
    ] = DEFAULT_MODEL,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the graphs will run.")] = "cpu",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="CPU: keep activations in float32 (slower, for accuracy studies) instead of int8."
        ),
    ] = False,
    kv_bits: Annotated[
        Literal["16", "8"], typer.Option(help="8: keys and values as int8, by the ranges that quantize saw.")
    ] = "16",
    kv_layout: Annotated[
        Literal["window", "full"],
        typer.Option(
            help="full, experimental: sliding layers have buffers as long as all others, and no step moves a window."
        ),
    ] = "window",
    block_size: Annotated[
        Literal["stored", "32"],
        typer.Option(
            help="CUDA, experimental: 32 repeats the scales of larger groups, so that CUTLASS kernels take the weights."
        ),
    ] = "stored",
) -> None:
    """Add vision and decoder graphs and runtime.json to a model folder. Weights stay in its safetensors files.

    The command `verify` says how far the graphs are from what they stand for.
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    if exact and device == "cuda":
        raise InputError("--exact: is for the CPU, whose products take int8 activations; CUDA's never do; leave it out")
    if block_size == "32" and device == "cpu":
        raise InputError("--block-size 32: is for kernels of CUDA; leave it out, or give --device cuda")
    from export.graphs import export_folder  # torch takes seconds to import, and --help needs none of it

    start = time.perf_counter()
    manifest = export_folder(
        model,
        device,
        exact=exact,
        kv_bits=8 if kv_bits == "8" else 16,
        kv_layout=kv_layout,
        block_size=32 if block_size == "32" else None,
    )
    entry = manifest.targets[device]
    activations = f"{entry.dtype} activations" + ("" if entry.exact else ", int8 where weights are packed")
    table = Table(title=f"{model}: {device}, {activations}, {entry.kv_dtype} KV cache")
    table.add_column("file")
    table.add_column("KiB", justify="right")
    for name in (entry.decoder, entry.vision, entry.mtp, entry.rewind, entry.mtp_rewind, *manifest.weights):
        if name:
            table.add_row(name, f"{(model / name).stat().st_size / 1024:,.0f}")
    console = Console(markup=False)
    console.print(table)
    where = "" if device == "cpu" else f" --device {device}"
    ask = "--image FILE" if entry.vision else "--prompt QUESTION"
    console.print(f"exported in {time.perf_counter() - start:.0f} s; next:")
    console.print(f"python -m runtime generate --model {model}{where} {ask}", soft_wrap=True)


@app.command()
def verify(
    model: Annotated[Path, typer.Option(help="Exported model folder.")] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:1 for the second card.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Hold every graph against the module it stands for, over the weights as they are; exit 1 where one is off."""
    from export.verification.verify import verify as verify_folder

    verification = verify_folder(model, device)
    if as_json:
        sys.stdout.write(json.dumps(asdict(verification) | {"passed": verification.passed}) + "\n")
    else:
        _print_verification(model, verification)
    if not verification.passed:
        raise typer.Exit(1)


def _print_verification(model: Path, verification: Verification) -> None:
    table = Table(
        "graph", "largest error", "allowed", "nodes that ran", title=f"{model} on {verification.device}", box=MARKDOWN
    )
    for rung in verification.rungs:
        table.add_row(rung.name, f"{rung.error:.1e}", f"{rung.tolerance:.0e}", _counts(rung.nodes))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    for rung in verification.rungs:
        if not rung.in_float:
            console.print(f"{rung.graph}: {_counts(rung.operators)}")
    memory = "" if verification.memory is None else f"; {verification.memory:.0f} MiB in use"
    console.print(f"decodes {verification.tokens_per_second:.1f} tokens/s{memory}")
    console.print(verification.about)
    for file in verification.damaged:
        console.print(f"FAILS: {model / file} is damaged: not the bytes that were exported; download or make it again")
    for rung in verification.rungs:
        if not rung.passed:
            console.print(f"FAILS: {rung.name} is {rung.error:.1e} off, {rung.tolerance:.0e} allowed; export it again")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    run_command(app)
