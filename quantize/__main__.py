"""The command line of `python -m quantize`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path  # noqa: TC003 (typer reads the annotations when it runs)
from typing import Annotated, Literal

import typer

from calib_data import READER
from console.errors import refuse_options, run_command

# Read by PyTorch when it is imported: huge pages, since a temporary of 100 MB takes longer to map than to fill.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

app = typer.Typer(add_completion=False)
RENAMED = {"--calibration": "--documents", "--samples": "--count", "--grid": "--quant-type"}


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="Checkpoint folder.", show_default="the bundled reader")] = READER,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="./<model>-w4, -w8, -nf4 or -w4-gptq")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of the decoder's weights: 4 or 8.")] = 4,
    quant_type: Annotated[Literal["int", "nf4"], typer.Option(help="Symmetric integers, or the NF4 codebook.")] = "int",
    format: Annotated[  # noqa: A002 (the option's name)
        Literal["compressed-tensors", "gptq", "bitsandbytes"] | None,
        typer.Option(help="Checkpoint format.", show_default="compressed-tensors; nf4: bitsandbytes"),
    ] = None,
    solver: Annotated[Literal["gptq", "rtn"], typer.Option(help="GPTQ, or RTN (round to nearest).")] = "gptq",
    group_size: Annotated[
        int | None, typer.Option(help="Number of weights that share a scale.", show_default="128; nf4: 64")
    ] = None,
    vision_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the vision tower: 8 or 16; nf4: 4 or 16; gptq: 16.", show_default="8; nf4, gptq: 16"
        ),
    ] = None,
    head_bits: Annotated[
        int | None,
        typer.Option(help="Bits of the head: 4, 8 or 16; nf4: 4 or 16; gptq: 16.", show_default="8; nf4, gptq: 16"),
    ] = None,
    documents: Annotated[
        str,
        typer.Option(
            help="Source of documents: `rendered`, `rendered:KIND`, a folder of images, a PDF, a JSONL file or a "
            "Hugging Face dataset."
        ),
    ] = "rendered",
    count: Annotated[int, typer.Option(help="Number of calibration documents.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed that draws documents from the source.")] = 0,
    reference: Annotated[
        int,
        typer.Option(
            help="Number of evaluation documents whose unquantized predictions go into reference.npz; 0: none."
        ),
    ] = 32,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to compute on.")] = "cpu",
    dtype: Annotated[
        Literal["float16", "bfloat16"], typer.Option(help="Dtype of scales and of weights that are not quantized.")
    ] = "float16",
) -> None:
    """Quantize a checkpoint to 4 or 8 bits or to NF4, block by block, calibrated on document images.

    The command `plan` estimates which GPU a result fits on.
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    from rich.console import Console

    from quantize.settings import Settings

    settings = Settings(
        model=model,
        output=output,
        bits=bits,
        quant_type=quant_type,
        format=format,
        solver=solver,
        group_size=group_size,
        vision_bits=vision_bits,
        head_bits=head_bits,
        documents=documents,
        count=count,
        seed=seed,
        reference=reference,
        device=device,
        dtype=dtype,
    )
    from quantize.pipeline import quantize  # imports torch, so after the settings, which may be wrong

    report = quantize(settings)
    console = Console(markup=False)
    if report is None:
        console.print(f"{settings.folder} is already finished with these settings")
        return
    console.print(report.table())
    console.print(
        f"{settings.folder}: {report.bytes / 2**20:.1f} MiB of weights in {report.seconds:.0f} s, "
        f"calibrated on {report.documents} documents ({report.tokens} tokens)"
    )


@app.command()
def plan(
    model: Annotated[
        Path,
        typer.Option(help="Model folder or its config.json; weights are not read.", show_default="the bundled reader"),
    ] = READER,
    vram: Annotated[str, typer.Option(help="GPU memory: MB and GB are powers of ten, MiB and GiB of two.")] = "24GB",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Number of tokens of prompt and answer.", show_default="32768, or the model's limit"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, sizes in bytes.")] = False,
) -> None:
    """Estimate the GPU memory of weights, KV cache and workspace, and the longest context, from config.json alone."""
    from rich.console import Console

    from quantize.plan.plan import make_plan, parse_bytes
    from quantize.plan.tables import print_plan

    planned = make_plan(model, parse_bytes(vram, "--vram"), context)
    if as_json:
        sys.stdout.write(json.dumps(planned.as_dict()) + "\n")
    else:
        print_plan(planned, Console(markup=False))


if __name__ == "__main__":
    run_command(app, RENAMED)
