"""`python -m export`: add the ONNX graphs of one device to a model folder, or verify them."""

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
    from export.verification.report import Verification
    from runtime.ort.manifest import Manifest

app = typer.Typer(add_completion=False)
RENAMED = {"--target": "--device"}
DEFAULT_MODEL = Path("reader-w4")


@app.callback(invoke_without_command=True)
def export_command(
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
        Literal["16", "8"], typer.Option(help="8: store keys and values as int8, in the ranges that quantize measured.")
    ] = "16",
    kv_layout: Annotated[
        Literal["window", "full"],
        typer.Option(
            help="full (experimental): buffers of sliding layers are as long as all others, so no step moves a window."
        ),
    ] = "window",
    block_size: Annotated[
        Literal["stored", "32"],
        typer.Option(help="CUDA: 32 (experimental) repeats the scales of larger groups for CUTLASS kernels."),
    ] = "stored",
) -> None:
    """Add the ONNX graphs of one device and runtime.json to a model folder. Weights stay in its safetensors files.

    `python -m export verify` compares the graphs with the PyTorch modules they were traced from.
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    if block_size == "32" and device == "cpu":
        raise InputError("--block-size 32: is for CUDA kernels; leave it out, or give --device cuda")
    from export import export  # torch takes seconds to import, and --help needs none of it

    start = time.perf_counter()
    manifest = export(
        model,
        device,
        exact=exact,
        kv_bits=8 if kv_bits == "8" else 16,
        kv_layout=kv_layout,
        block_size=32 if block_size == "32" else None,
    )
    _print_export(model, device, manifest, time.perf_counter() - start)


def _print_export(model: Path, device: str, manifest: Manifest, seconds: float) -> None:
    """Print the files of a target with their sizes, and the command that runs them."""
    target = manifest.targets[device]
    activations = f"{target.dtype} activations" + ("" if target.exact else ", int8 where weights are packed")
    table = Table(title=f"{model}: {device}, {activations}, {target.kv_dtype} KV cache")
    table.add_column("file")
    table.add_column("KiB", justify="right")
    for name in (target.decoder, target.vision, target.mtp, target.rewind, target.mtp_rewind, *manifest.weights):
        if name:
            table.add_row(name, f"{(model / name).stat().st_size / 1024:,.0f}")
    console = Console(markup=False)
    console.print(table)
    device_option = "" if device == "cpu" else f" --device {device}"
    question = "--image FILE" if target.vision else "--prompt QUESTION"
    console.print(f"exported in {seconds:.0f} s; next:")
    console.print(f"python -m runtime generate --model {model}{device_option} {question}", soft_wrap=True)


@app.command("verify")
def verify_command(
    model: Annotated[Path, typer.Option(help="Exported model folder.")] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:1 for the second GPU.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Compare every graph with the PyTorch module it was traced from; exit with code 1 if one differs."""
    from export import verify

    verification = verify(model, device)
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
    for check in verification.checks:
        table.add_row(check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", _counts(check.nodes))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    for check in verification.checks:
        if not check.float32:
            console.print(f"{check.graph}: {_counts(check.operators)}")
    memory = "" if verification.memory is None else f"; {verification.memory:.0f} MiB in use"
    console.print(f"decodes {verification.tokens_per_second:.1f} tokens/s{memory}")
    console.print(verification.about)
    for file in verification.damaged:
        console.print(f"FAILS: {model / file} is damaged: its bytes changed after export; download or make it again")
    for check in verification.checks:
        if not check.passed:
            error = f"is {check.error:.1e} off, {check.tolerance:.0e} allowed"
            console.print(f"FAILS: {check.name} {error}; export it again")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    run_command(app, RENAMED)
