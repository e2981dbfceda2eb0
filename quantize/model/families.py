"""Model families: the paths of their parts, and their config as transformers reads it. A new family is a new row."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.files import RESTORE
from quantize.model.config_types import check_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Linears = tuple[tuple[str, ...], ...]
"""Linears of a block in groups that read the same input, in the order in which data reaches them."""

DECODER_LINEARS: Linears = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
VISION_LINEARS: Linears = (("attn.qkv",), ("attn.proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
MERGER_LINEARS: Linears = (("mlp.0",), ("mlp.2",))
MTP_LINEARS: Linears = (("fc",),)  # in addition to those of its decoder layers

_LAYER_TYPES = ("sliding_attention", "full_attention")


@dataclass(frozen=True)
class Family:
    """Module paths of a family, as tensors are named in its checkpoint."""

    model_type: str
    """`model_type` of config.json."""
    auto_class: str
    """The transformers class that loads it."""
    text: str
    """The decoder, with `layers`, `embed_tokens` and `norm` below it."""
    vision: str | None = None
    """The vision tower, with `blocks`, `merger` and `patch_embed` below it; None without one."""
    mtp: str | None = None
    """The multi-token prediction layer, which transformers drops; None without one."""
    post_norm: bool = True
    """Whether outputs of decoder linears (q and k, attention, MLP) are normalised per token, not their inputs."""
    head: str = "lm_head"
    """The head."""
    decoder_linears: Linears = DECODER_LINEARS
    """Linears of a decoder layer."""
    vision_linears: Linears = VISION_LINEARS
    """Linears of a vision block."""
    merger_linears: Linears = MERGER_LINEARS
    """Linears of the merger."""

    @property
    def embeddings(self) -> str:
        """The token embedding."""
        return f"{self.text}.embed_tokens"

    @property
    def norm(self) -> str:
        """The last norm, in front of the head."""
        return f"{self.text}.norm"

    @property
    def merger(self) -> str | None:
        """The module that merges the vision tower's patches into image tokens."""
        return self.vision and f"{self.vision}.merger"

    @property
    def patch_embed(self) -> str | None:
        """The module that embeds pixels as hidden states of the vision tower."""
        return self.vision and f"{self.vision}.patch_embed"

    def tower(self, path: str) -> str:
        """Return the part that a module belongs to: "vision", "decoder", "mtp" or "head"."""
        if self.vision and path.startswith(f"{self.vision}."):
            return "vision"
        if self.mtp and path.startswith(f"{self.mtp}."):
            return "mtp"
        return "head" if path == self.head else "decoder"

    def is_post_norm(self, path: str) -> bool:
        """Tell whether the outputs of a linear are normalised per token."""
        return self.post_norm and self.tower(path) in ("decoder", "mtp") and path != f"{self.mtp}.fc"

    def decoder_blocks(self, config: PreTrainedConfig) -> list[str]:
        """List the decoder layers, first to last."""
        return [f"{self.text}.layers.{i}" for i in range(config.get_text_config().num_hidden_layers)]

    def vision_blocks(self, config: PreTrainedConfig) -> list[str]:
        """List the vision blocks, first to last."""
        return [f"{self.vision}.blocks.{i}" for i in range(config.vision_config.depth)] if self.vision else []

    def blocks(self, config: PreTrainedConfig) -> list[tuple[str, Linears]]:
        """List the blocks of a checkpoint and their linears, in the order in which data passes."""
        blocks: list[tuple[str, Linears]] = []
        if self.patch_embed and self.merger:
            blocks.append((self.patch_embed, ()))
            blocks += [(path, self.vision_linears) for path in self.vision_blocks(config)]
            blocks.append((self.merger, self.merger_linears))
        blocks.append((self.embeddings, ()))
        blocks += [(path, self.decoder_linears) for path in self.decoder_blocks(config)]
        blocks.append((self.norm, ()))
        if self.mtp and self.mtp_layers(config):
            blocks.append((self.mtp, self.mtp_linears(config)))
        return [*blocks, (self.head, (("",),))]

    def mtp_layers(self, config: PreTrainedConfig) -> int:
        """Return the number of MTP layers."""
        layers: int = getattr(config.get_text_config(), "num_nextn_predict_layers", None) or 0
        return layers if self.mtp else 0

    def mtp_linears(self, config: PreTrainedConfig) -> Linears:
        """List the linears of the MTP layer, below its path."""
        layers = range(self.mtp_layers(config))
        inner = (full_paths(f"layers.{layer}", self.decoder_linears) for layer in layers)
        return sum(inner, MTP_LINEARS) if layers else ()

    def skeleton(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the transformers model, with the MTP layer, on the meta device: every module, no memory.

        Attention in its decoder also returns how much each token was read (`quantize.model.attention`). Raises
        InputError where transformers cannot build it.
        """
        import torch
        import transformers

        from quantize.model.attention import READ_COUNTING
        from quantize.model.mtp import MtpLayer

        with torch.device("meta"):
            try:
                model = getattr(transformers, self.auto_class).from_config(config)
            except Exception as error:  # sizes that do not fit each other, in the words of any module
                raise InputError(f"config.json: transformers cannot build this model ({error}); {RESTORE}") from error
            text = model.get_submodule(self.text)
            text.config._attn_implementation = READ_COUNTING
            if (layers := self.mtp_layers(config)) and self.mtp:
                model.add_module(self.mtp, MtpLayer(text, text.config, layers))
        return model.eval().requires_grad_(False)


def full_paths(path: str, linears: Linears) -> Linears:
    """Join the path of a block with the paths of its linears; "" is the block itself."""
    return tuple(tuple(f"{path}.{name}" if name else path for name in group) for group in linears)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("exaone4_5", "AutoModelForImageTextToText", "model.language_model", vision="model.visual", mtp="mtp"),
        Family("exaone4", "AutoModelForCausalLM", "model"),
    )
}


def find_family(raw: dict[str, Any]) -> Family:
    """Find the family of a raw config.json. Raises InputError for one that is not supported."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"config.json: model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def repair_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a raw config.json that transformers accepts.

    Released EXAONE files name the text model `exaone4_5_text`, list the MTP layer among `layer_types`, or have only a
    string pattern such as "LLLG". Raises InputError where a needed value is missing.
    """
    family = find_family(raw)
    check_config(raw, has_vision=family.vision is not None)
    config = copy.deepcopy(raw)
    text = config["text_config"] if family.vision else config
    if text.get("model_type") == "exaone4_5_text":
        text["model_type"] = "exaone4"
    layers = text["num_hidden_layers"]
    kinds = text.get("layer_types") or _expand_pattern(text, layers)
    if len(kinds) < layers:
        raise InputError(f"config.json: layer_types has {len(kinds)} entries for {layers} layers")
    for kind in kinds[:layers]:
        if kind not in _LAYER_TYPES:
            raise InputError(f"config.json: layer_types has {kind!r}; supported: {', '.join(_LAYER_TYPES)}")
    text["layer_types"] = kinds[:layers]
    return config


def _expand_pattern(text: dict[str, Any], layers: int) -> list[str]:
    """Expand "LLLG" (repeated, the last layer always global) or 4 (every fourth layer is global) to layer types."""
    pattern = text.get("sliding_window_pattern", 4)
    if text.get("sliding_window") is None or not pattern:
        return ["full_attention"] * layers
    period = pattern if isinstance(pattern, str) else "L" * (pattern - 1) + "G"
    if set(period) - set("LG"):
        raise InputError(f"config.json: sliding_window_pattern {pattern!r} is neither a number nor letters L and G")
    sliding = [period[i % len(period)] == "L" for i in range(layers)]
    if isinstance(pattern, str):
        sliding[-1] = False
    return ["sliding_attention" if local else "full_attention" for local in sliding]


def model_config(raw: dict[str, Any]) -> PreTrainedConfig:
    """Make the transformers config of a raw config.json, repaired and without its `quantization_config`.

    Raises InputError where transformers still rejects it.
    """
    from transformers import AutoConfig

    config = repair_config(raw)
    config.pop("quantization_config", None)
    model_type = config.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **config)
    except Exception as error:  # transformers and its validators raise a dozen kinds here
        raise InputError(f"config.json is rejected by transformers: {error}") from None
