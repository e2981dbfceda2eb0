"""`python -m bench.run_scale`: a picture, a prompt and an answer at the widths of EXAONE 4.5 33B, a few layers deep.

The folder is 4-bit as quantize writes it, of random codes (`bench.quantized_widths`): what it answers means nothing,
what it takes is what the released weights would take, layer for layer.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from bench.process import Finished, run
from bench.provenance import provenance
from console.errors import run_command

app = typer.Typer(add_completion=False)
PIXEL_SIZE = 28  # of an image token, which stands for a square of so many pixels


def picture(tokens_wide: int, tokens_high: int, path: Path) -> None:
    """Save a grey gradient of so many image tokens."""
    Image.linear_gradient("L").resize((PIXEL_SIZE * tokens_wide, PIXEL_SIZE * tokens_high)).save(path)


def answer(model: Path, image: Path, new_tokens: int) -> tuple[dict[str, Any], Finished]:
    """What `runtime generate --json` says, and its process."""
    options = ["--model", str(model), "--image", str(image), "--max-new-tokens", str(new_tokens)]
    process = run("runtime", "generate", *options, "--temperature", "0", "--draft-tokens", "0", "--json")
    said: dict[str, Any] = json.loads(process.output)
    return said, process


def table(export: Finished, said: dict[str, Any], process: Finished) -> list[str]:
    """What each step took."""
    prompt, tokens = said["prompt_tokens"], len(said["tokens"])
    return [
        "| step | seconds | peak memory, MiB |",
        "|---|---|---|",
        f"| export | {export.seconds:.1f} | {export.peak:.0f} |",
        f"| load the decoder | {said['load_seconds']:.1f} | |",
        f"| load the vision tower, picture and prompt of {prompt} tokens | {said['first_token_seconds']:.1f} | |",
        f"| {tokens - 1} more tokens, {said['tokens_per_second']:.2f} a second "
        f"| {(tokens - 1) / said['tokens_per_second']:.1f} | |",
        f"| all of `generate` | {process.seconds:.1f} | {process.peak:.0f} |",
    ]


@app.command()
def main(
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 4,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Of the picture, in image tokens.")] = 20,
    height: Annotated[int, typer.Option(min=1, help="Of the picture, in image tokens.")] = 14,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the answer.")] = 8,
    place: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the folder is made, 4 GB at 4 layers.", show_default="temporary"),
    ] = None,
) -> None:
    """Export a folder as wide as EXAONE 4.5 33B for the CPU and let it answer; print time and memory."""
    shape = ["--layers", str(layers), "--vision-blocks", str(vision_blocks)]
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        model, image = Path(temporary) / "model-w4", Path(temporary) / "picture.png"
        run("bench.quantized_widths", "--output", str(model), *shape)
        picture(width, height, image)
        export = run("export", "--model", str(model))
        said, process = answer(model, image, new_tokens)
    print(*table(export, said, process), sep="\n")
    command = f"python -m bench.run_scale {' '.join(shape)} --width {width} --height {height} --new-tokens {new_tokens}"
    print(f"\n{provenance(command)}")


if __name__ == "__main__":
    run_command(app)
