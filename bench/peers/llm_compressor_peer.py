"""llm-compressor's GPTQ, as peer.py calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = "sdpa"
DECODER = r"re:(.*\.)?layers\.\d+\.(self_attn|mlp)\..*_proj$"


def quantize(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calls: list[dict[str, Any]], settings: dict[str, Any]
) -> PreTrainedModel:
    """Replace the decoder's weights by 4-bit values, symmetric in groups.

    settings: `group_size`; `observer`, which chooses scales, null for the default, the largest weight of a group.
    Static act-order and a damping of 0.01 are defaults.
    """
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": settings["group_size"],
        "observer": settings["observer"],
    }
    layer = next(type(module).__name__ for name, module in model.named_modules() if name.endswith(".layers.0"))
    dataset: Any = calls  # a list is enough
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=DataLoader(dataset, batch_size=None, shuffle=False),
        recipe=GPTQModifier(config_groups={"decoder": {"targets": [DECODER], "weights": weights}}),
        num_calibration_samples=len(calls),
        sequential_targets=[layer],
    )
    return model
