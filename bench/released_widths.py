"""`python -m bench.released_widths`: a checkpoint as wide as EXAONE 4.5 33B and as deep as one can afford.

Weights are random, names and shapes the release's, MTP layer included. Tokenizer, chat template and image processor are
the bundled reader's, so its special tokens are, too; embeddings and head have the release's full vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from calib_data import READER
from console.errors import InputError, run_command
from console.files import read_object
from console.progress import track
from quantize.checkpoint.writer import SHARD_BYTES, CheckpointWriter
from quantize.output import copy_companions
from quantize.plan.sizes import read_architecture

app = typer.Typer(add_completion=False)
RELEASED = Path(__file__).parents[1] / "tests" / "data" / "exaone-4.5-33b.config.json"
SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
TEXT_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
STD = 0.02  # of weights: what transformers initialises with


def shortened(released: dict[str, Any], layers: int, vision_blocks: int) -> dict[str, Any]:
    """The raw config.json of a model with the first decoder layers and vision blocks, and the reader's special tokens.

    The last decoder layer is global and the last vision block sees whole images, as in the release, so that two of each
    have both kinds. The entry of the MTP layer, which the release has behind its layer types, stays.
    """
    reader = read_object(READER / "config.json")
    text, vision = dict(released["text_config"]), dict(released["vision_config"])
    mtp = text["layer_types"][text["num_hidden_layers"] :]
    text["num_hidden_layers"] = layers
    text["layer_types"] = [*text["layer_types"][: layers - 1], "full_attention", *mtp]
    vision["depth"] = vision_blocks
    vision["fullatt_block_indexes"] = [
        *(block for block in vision["fullatt_block_indexes"] if block < vision_blocks - 1),
        vision_blocks - 1,
    ]
    text |= {key: reader["text_config"][key] for key in TEXT_SPECIAL_TOKENS}
    tokens = {key: reader[key] for key in SPECIAL_TOKENS}
    return {**released, **tokens, "text_config": text, "vision_config": vision}


def make_checkpoint(config: dict[str, Any], folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint of a raw config.json in bfloat16, in several files, with one tensor in memory at a time.

    Matrices are normal with a deviation of 0.02, norms one and biases zero. Raises InputError where the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; give another --output or remove it")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    try:
        shapes = read_architecture(config).shapes
        generator = torch.Generator().manual_seed(seed)
        with CheckpointWriter(partial, shard_bytes) as writer:
            for name in track(list(shapes), "Writing"):
                writer.write([(name, _random(name, shapes[name], generator))])
            writer.finish()
        copy_companions(READER, partial)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, float(not name.endswith("bias")), dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, STD, generator=generator)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 2,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Write a checkpoint with the widths of EXAONE 4.5 33B and random weights."""
    make_checkpoint(shortened(read_object(RELEASED), layers, vision_blocks), output, seed)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{output}: {layers} decoder layers, {vision_blocks} vision blocks, {size / 2**30:.1f} GiB")


if __name__ == "__main__":
    run_command(app)
