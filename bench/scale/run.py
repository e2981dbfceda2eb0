"""Time and memory of `export` and `runtime generate` at the widths of EXAONE 4.5 33B, a few layers deep.

The folder has random 4-bit codes: its answer means nothing, but takes what the released weights would take, layer for
layer.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from bench import process
from bench.provenance import provenance
from bench.scale.folders import RELEASED, shortened
from bench.scale.quantized import make_quantized
from console.files import read_object

PIXELS = 28  # along the side of the square that an image token stands for
WIDTH, HEIGHT = 20, 14  # of the image, in image tokens


def save_image(tokens_wide: int, tokens_high: int, path: Path) -> None:
    """Save a grey gradient; its size is in image tokens."""
    Image.linear_gradient("L").resize((PIXELS * tokens_wide, PIXELS * tokens_high)).save(path)


def answer(model: Path, image: Path, new_tokens: int) -> tuple[dict[str, Any], process.Finished]:
    """The output of `runtime generate --json`, and its process."""
    options = ["--model", str(model), "--image", str(image), "--max-new-tokens", str(new_tokens)]
    finished = process.run("runtime", "generate", *options, "--temperature", "0", "--draft-tokens", "0", "--json")
    output: dict[str, Any] = json.loads(finished.output)
    return output, finished


def table(export: process.Finished, output: dict[str, Any], generate: process.Finished) -> list[str]:
    """One row a step."""
    prompt, tokens = output["prompt_tokens"], len(output["tokens"])
    return [
        "| step | seconds | peak memory, MiB |",
        "|---|---|---|",
        f"| export | {export.seconds:.1f} | {export.peak:.0f} |",
        f"| load the decoder | {output['load_seconds']:.1f} | |",
        f"| load the vision tower, image and prompt of {prompt} tokens | {output['first_token_seconds']:.1f} | |",
        f"| {tokens - 1} more tokens, {output['tokens_per_second']:.2f} a second "
        f"| {(tokens - 1) / output['tokens_per_second']:.1f} | |",
        f"| all of `generate` | {generate.seconds:.1f} | {generate.peak:.0f} |",
    ]


def main(
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 4,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the answer.")] = 8,
    folder: Annotated[
        Path | None, typer.Option(help="Where the model is made, 4 GB at 4 layers.", show_default="temporary")
    ] = None,
) -> None:
    """Export a random 4-bit folder for the CPU and ask about an image; print time and memory."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        model, image = Path(temporary) / "model-w4", Path(temporary) / "image.png"
        make_quantized(shortened(read_object(RELEASED), layers, vision_blocks), model, sparse=False)
        save_image(WIDTH, HEIGHT, image)
        export = process.run("export", "--model", str(model))
        output, generate = answer(model, image, max_new_tokens)
    print(*table(export, output, generate), sep="\n")
    options = f"--layers {layers} --vision-blocks {vision_blocks} --max-new-tokens {max_new_tokens}"
    print(f"\n{provenance(f'python -m bench.scale run {options}')}")
