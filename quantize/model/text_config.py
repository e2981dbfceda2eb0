"""What config.json says about the decoder's attention: head width, windows, RoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head. config: of the text model; EXAONE 4.x configs leave the width implicit."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def windows(config: PreTrainedConfig) -> list[int | None]:
    """Number of keys that a token sees in each decoder layer; None in layers without a window."""
    text = config.get_text_config()
    return [text.sliding_window if kind == "sliding_attention" else None for kind in text.layer_types]


def mtp_windows(config: PreTrainedConfig) -> list[int | None]:
    """The same for the MTP layer, which has a window in every model whose decoder has one."""
    return [config.get_text_config().sliding_window]


def rope(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that `runtime.ort.rope` reads."""
    text = config.get_text_config()
    return {
        "head_dim": head_dim(text),
        "max_position_embeddings": text.max_position_embeddings,
        "rope_parameters": dict(text.rope_parameters),
    }
