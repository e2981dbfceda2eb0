"""What becomes of a model: which linear gets which grid, whether that is possible, and the config that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from console.errors import InputError
from quantize.checkpoint.formats import quantization_config
from quantize.model.families import full_paths, repair_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PreTrainedConfig

    from quantize.checkpoint.reader import Checkpoint
    from quantize.model.families import Family
    from quantize.settings import Settings
    from quantize.solver.quantizers import Quantizer

Grids = dict[str, "Quantizer | None"]
"""The grid of every linear, by its full path; None where it stays in 16 bits."""


def plan_grids(settings: Settings, family: Family, config: PreTrainedConfig) -> Grids:
    """Choose the grid of every linear."""
    decoder = settings.quantizer_of("decoder")
    towers = {
        "vision": settings.quantizer_of("vision"),
        "decoder": decoder,
        "mtp": None if settings.format == "gptq" else decoder,  # no loader of that format quantizes the MTP layer
        "head": settings.quantizer_of("head"),
    }
    blocks = (sum(full_paths(path, linears), ()) for path, linears in family.blocks(config))
    return {linear: towers[family.tower(linear)] for linears in blocks for linear in linears}


def has_mtp(checkpoint: Checkpoint, family: Family) -> bool:
    """Tell whether the checkpoint has an MTP layer; transformers drops it when it saves one."""
    return family.mtp is not None and any(name.startswith(f"{family.mtp}.") for name in checkpoint.tensors)


def is_tied(checkpoint: Checkpoint, family: Family, config: PreTrainedConfig) -> bool:
    """Tell whether the head is the embedding."""
    return ties_head(config) and f"{family.head}.weight" not in checkpoint.tensors


def ties_head(config: PreTrainedConfig) -> bool:
    """Tell whether the config makes the head the embedding."""
    return bool(config.tie_word_embeddings or config.get_text_config().tie_word_embeddings)


def check(
    settings: Settings, checkpoint: Checkpoint, family: Family, model: nn.Module, grids: Grids, tied: bool
) -> None:
    """Compare the checkpoint with its config, and linears with their format. Raises InputError."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, expected in shapes.items():
        if tied and name == f"{family.head}.weight":
            continue
        if name not in checkpoint.tensors:
            raise InputError(f"{checkpoint.folder}: the checkpoint has no tensor {name}; is it complete?")
        shape = checkpoint.tensors[name].shape
        if shape != expected:
            found, wanted = list(shape), list(expected)
            raise InputError(f"{checkpoint.folder}: {name} is {found} in the weights, {wanted} by config.json")
    check_shapes(settings, shapes, grids)


def check_shapes(settings: Settings, shapes: Mapping[str, tuple[int, ...]], grids: Grids) -> None:
    """Compare the shapes of linears with their groups and format. shapes: of every parameter. Raises InputError."""
    for path, grid in grids.items():
        if grid is None:
            continue
        outputs, inputs = shapes[f"{path}.weight"]
        if inputs % grid.group_size:
            raise InputError(
                f"--group-size {grid.group_size} does not divide the {inputs} inputs of {path}; give `quantize` another"
            )
        if settings.format == "gptq" and outputs * grid.bits % 32:
            raise InputError(
                f"--format gptq packs outputs by {32 // grid.bits}, which does not divide the {outputs} of {path}; "
                "use --format compressed-tensors"
            )


def output_config(
    settings: Settings, checkpoint: Checkpoint, family: Family, grids: Grids, tied: bool
) -> dict[str, Any]:
    """Make the config.json of the result: the original, repaired, with its dtype and what is quantized how.

    A quantized head can no longer be the embedding, and an MTP layer that the checkpoint lacks is not promised.
    """
    raw = repair_config(checkpoint.config)
    text = raw["text_config"] if family.vision else raw
    if text.get("num_nextn_predict_layers") and not has_mtp(checkpoint, family):
        text["num_nextn_predict_layers"] = 0
    raw["dtype"] = settings.dtype
    raw["tie_word_embeddings"] = tied and grids[family.head] is None
    for part in (raw, raw.get("text_config", {}), raw.get("vision_config", {})):
        for key, value in (("dtype", settings.dtype), ("torch_dtype", settings.dtype)):
            if key in part:
                part[key] = value
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = raw["tie_word_embeddings"]
    quantized = {path: grid for path, grid in grids.items() if grid is not None}
    plain = [path for path in grids if path not in quantized]
    raw["quantization_config"] = quantization_config(settings, quantized, plain, family)
    return raw
