"""Folders of EXAONE 4.5 33B's widths with random weights, as deep as the machine can afford.

Names and shapes are those of the release, the MTP layer included. Embeddings and head have its full vocabulary. The
tokenizer, chat template and image processor are the bundled reader's, and so are the special tokens.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calib_data import READER
from console.errors import InputError
from console.files import read_object
from console.progress import track
from quantize.checkpoint.writer import SHARD_BYTES, CheckpointWriter
from quantize.output import copy_companions, write_json
from quantize.plan.architecture import read_architecture

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASED = Path(__file__).parents[2] / "tests" / "data" / "exaone-4.5-33b.config.json"
SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
TEXT_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
STD = 0.02  # standard deviation of weights, as transformers initialises them


def shortened(released: dict[str, Any], layers: int, vision_blocks: int) -> dict[str, Any]:
    """Raw config.json of the first decoder layers and vision blocks, with the reader's special tokens.

    The last decoder layer is global and the last vision block sees whole images, as in the release: two of each have
    both kinds of attention. The release lists the MTP layer behind its layer types; this entry stays.
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
    """Write a bfloat16 checkpoint of a raw config.json, with one tensor in memory at a time.

    Matrices are normal with a standard deviation of 0.02, norms one and biases zero. Raises InputError if the folder
    exists.
    """
    with new_folder(folder) as partial:
        shapes = read_architecture(config).shapes
        generator = torch.Generator().manual_seed(seed)
        with CheckpointWriter(partial, shard_bytes) as writer:
            for name in track(list(shapes), "Writing"):
                writer.write([(name, random_weight(name, shapes[name], torch.bfloat16, generator))])
            writer.finish()
        copy_companions(READER, partial)
        write_json(partial / "config.json", config)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder that gets its name only when it is complete. Raises InputError if that exists."""
    if folder.exists():
        raise InputError(f"{folder} exists; give another --output or remove it")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def random_weight(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """A tensor that is not quantized: a random matrix, a norm of ones, or a bias of zeros."""
    if len(shape) == 1:
        return torch.full(shape, float(not name.endswith("bias")), dtype=dtype)
    return torch.empty(shape, dtype=dtype).normal_(0, STD, generator=generator)
