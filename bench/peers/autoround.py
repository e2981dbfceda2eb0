"""AutoRound, as peer.py calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auto_round import AutoRound

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = "eager"  # always has a mask; where some documents have none, AutoRound mixes up whose masks it kept
BATCH = 8  # documents a step, AutoRound's default; one after the other, so that none is padded


def quantize(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calls: list[dict[str, Any]], settings: dict[str, Any]
) -> PreTrainedModel:
    """Put 4-bit values, symmetric in groups of 128, in the place of the decoder's weights.

    settings: `iters`; `own_masks`, whether AutoRound is told that blocks differ in their masks; `last_iteration`,
    whether to keep that instead of the iteration of least loss. Unless told, AutoRound runs every block with the mask
    of the first one, in EXAONE 4.5 that of a sliding window; and it compares the losses of different batches, although
    documents of different lengths make them differ by themselves.
    """
    rounding = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        processor=tokenizer,  # asked for, and not used on documents that are tokens already
        dataset=calls,
        nsamples=len(calls),
        seqlen=max(call["input_ids"].shape[1] for call in calls),
        batch_size=1,
        gradient_accumulate_steps=BATCH,
        iters=settings["iters"],
        amp=False,
        not_use_best_mse=settings["last_iteration"],
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounding.has_variable_block_shape = settings["own_masks"]
    quantized: PreTrainedModel = rounding.quantize()[0]
    return quantized
