"""Files for peers and from peers: calibration documents, and the decoder's quantized weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from console.errors import InputError
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import DECODER_LINEARS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

    from quantize.calibration.samples import Sample

BITS = 4
LAYERS = ("model.language_model.layers.", "model.layers.")  # of an image-text model, of a language model
LINEARS = tuple(f"{linear}.weight" for group in DECODER_LINEARS for linear in group)


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write documents as peer.py reads them: `ids.<i>`, and with an image `patches.<i>` and `grid.<i>`."""
    tensors: dict[str, torch.Tensor] = {}
    for i, sample in enumerate(samples):
        parts = {"ids": sample.ids, "patches": sample.patches, "grid": sample.grid}
        tensors |= {f"{name}.{i}": tensor for name, tensor in parts.items() if tensor is not None}
    save_file(tensors, path)


def read_weights(path: Path, model: Path, group_size: int) -> dict[str, torch.Tensor]:
    """Read the result of peer.py. Raises InputError unless exactly the decoder linears are quantized to 4 bits."""
    weights = load_file(path)
    expected = {name for name in open_checkpoint(model).tensors if is_decoder_linear(name)}
    if wrong := min(weights.keys() ^ expected, default=None):
        raise InputError(f"{path}: {wrong} {'was' if wrong in weights else 'was not'} quantized; delete the file")
    for name, weight in weights.items():
        if (levels := most_levels(weight, group_size)) > 2**BITS:
            raise InputError(f"{path}: {name} has {levels} values in a group, not {2**BITS}; delete the file")
    return weights


def is_decoder_linear(name: str) -> bool:
    """Whether a tensor is q, k, v, o, gate, up or down of the decoder."""
    return name.startswith(LAYERS) and name.endswith(LINEARS)


def most_levels(weight: torch.Tensor, group_size: int) -> int:
    """The largest number of different values in a group of inputs of a weight [N, K]."""
    ordered = weight.reshape(-1, group_size).sort(-1).values
    return int((ordered.diff() != 0).sum(-1).max()) + 1
