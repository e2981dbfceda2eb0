"""AutoRound, as peer.py calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auto_round import AutoRound

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = "eager"  # always has a mask; AutoRound mixes masks up if only some documents have one
BATCH = 8  # documents a step, AutoRound's default; one at a time, so that none is padded


def quantize(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calls: list[dict[str, Any]], settings: dict[str, Any]
) -> PreTrainedModel:
    """Replace the decoder's weights by 4-bit values, symmetric in groups.

    settings: `group_size`; `iters`; `lr`, the learning rate, null for the default; `own_masks`, whether every block has
    its own mask; `last_iteration`, whether to keep the last iteration instead of the one with the smallest loss. By
    default AutoRound runs every block with the mask of the first one, which is a sliding window in EXAONE 4.5. It also
    compares the losses of different batches, although these differ with the length of the documents alone.
    """
    rounding = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        group_size=settings["group_size"],
        processor=tokenizer,  # required, but not used: the documents are tokens already
        dataset=calls,
        nsamples=len(calls),
        seqlen=max(call["input_ids"].shape[1] for call in calls),
        batch_size=1,
        gradient_accumulate_steps=BATCH,
        iters=settings["iters"],
        lr=settings["lr"],
        amp=False,
        not_use_best_mse=settings["last_iteration"],
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounding.has_variable_block_shape = settings["own_masks"]
    quantized: PreTrainedModel = rounding.quantize()[0]
    return quantized
