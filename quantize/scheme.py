"""Choose how each linear of a checkpoint is quantized, check that it can be, and write it into config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.progress import say
from quantize.checkpoint.formats import quantization_config
from quantize.model.families import find_family, full_paths, model_config, repair_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

    from quantize.checkpoint.reader import Checkpoint
    from quantize.model.families import Family
    from quantize.settings import Settings
    from quantize.solver.quantizers import Quantizer

Quantizers = dict[str, "Quantizer | None"]
"""The quantizer of every linear, by its full path; None where it stays in 16 bits."""


@dataclass(frozen=True)
class Scheme:
    """A checkpoint, its modules, and the quantizer of every linear."""

    settings: Settings
    """What the user chose."""
    checkpoint: Checkpoint
    """The weights to quantize."""
    family: Family
    """Where the model has its parts."""
    model: PreTrainedModel
    """transformers' modules on the meta device; one block at a time has weights."""
    quantizers: Quantizers
    """How each linear is quantized."""
    tied: bool
    """Whether the head of the checkpoint is the embedding."""

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return self.model.config


def make_scheme(settings: Settings, checkpoint: Checkpoint) -> Scheme:
    """Choose the quantizers of a checkpoint. Raises InputError for one that is quantized or not supported."""
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    if checkpoint.config.get("quantization_config") is not None:
        raise InputError(f"{settings.model} is quantized already; give the original checkpoint")
    if family.mtp_layers(config) and not has_mtp(checkpoint, family):
        config.get_text_config().num_nextn_predict_layers = 0
        say(f"{settings.model} has no MTP layer (transformers drops it when it saves a model), so none is written")
    quantizers, tied = choose_quantizers(settings, family, config), is_tied(checkpoint, family, config)
    return Scheme(settings, checkpoint, family, family.skeleton(config), quantizers, tied)


def choose_quantizers(settings: Settings, family: Family, config: PreTrainedConfig) -> Quantizers:
    """Choose the quantizer of every linear."""
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
    """Tell whether the head of the checkpoint is the embedding; a head of its own counts, whatever the config says."""
    return ties_head(config) and not any(name.startswith(f"{family.head}.") for name in checkpoint.tensors)


def ties_head(config: PreTrainedConfig) -> bool:
    """Tell whether the config ties the head to the embedding. transformers reads the key of the whole model only."""
    return bool(config.tie_word_embeddings)


def check(scheme: Scheme) -> None:
    """Raise InputError where weights do not match config.json, or linears do not fit groups and format."""
    checkpoint, head = scheme.checkpoint, f"{scheme.family.head}.weight"
    parameters = scheme.model.named_parameters(remove_duplicate=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    for name, expected in shapes.items():
        if not (scheme.tied and name == head):
            checkpoint.require_shape(name, expected)
    check_shapes(scheme.settings, shapes, scheme.quantizers)


def check_shapes(settings: Settings, shapes: Mapping[str, tuple[int, ...]], quantizers: Quantizers) -> None:
    """Raise InputError where linears do not fit their groups or format. shapes: of every parameter, by its name."""
    for path, quantizer in quantizers.items():
        if quantizer is None:
            continue
        outputs, inputs = shapes[f"{path}.weight"]
        if inputs % quantizer.group_size:
            raise InputError(
                f"--group-size {quantizer.group_size} does not divide the {inputs} inputs of {path}; "
                "give `quantize` another"
            )
        if settings.format == "gptq" and outputs * quantizer.bits % 32:
            raise InputError(
                f"--format gptq packs outputs by {32 // quantizer.bits}, which does not divide the {outputs} of {path};"
                " use --format compressed-tensors"
            )


def output_config(
    settings: Settings, checkpoint: Checkpoint, family: Family, quantizers: Quantizers, tied: bool
) -> dict[str, Any]:
    """Make the config.json of the result: the original, repaired, with its dtype and what is quantized how.

    A quantized head is no longer tied to the embedding, and an MTP layer that the checkpoint lacks is not announced.
    `vocab_size` is at the top level, too, where vLLM's MTP layer reads it.
    """
    raw = repair_config(checkpoint.config)
    text = raw["text_config"] if family.vision else raw
    if "vocab_size" in text:
        raw["vocab_size"] = text["vocab_size"]
    if text.get("num_nextn_predict_layers") and not has_mtp(checkpoint, family):
        text["num_nextn_predict_layers"] = 0
    raw["dtype"] = settings.dtype
    raw["tie_word_embeddings"] = tied and quantizers[family.head] is None
    for part in (raw, raw.get("text_config", {}), raw.get("vision_config", {})):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = settings.dtype
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = raw["tie_word_embeddings"]
    raw["quantization_config"] = quantization_config(settings, quantizers, family)
    return raw
