"""Outputs of the PyTorch decoder or MTP layer over a KV cache: in float32, or in 16 bits as on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from runtime.ort.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.ort.manifest import Text

Call = tuple[int, int]
"""The first token that a call reads, and the token after its last."""


def run_with_cache(
    module: Decoder | Mtp, text: Text, inputs: Sequence[NDArray[np.float32]], calls: Sequence[Call], dtype: torch.dtype
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run a module call by call; returns logits [T, V] and hidden states [T, H] of all tokens.

    inputs: embeddings [T, H]; for the MTP layer also hidden states [T, H].
    dtype: of activations, and of keys and values unless these are int8.
    For a decoder made without hidden states the second result is meaningless.
    """
    tokens, windows = calls[-1][1], text.mtp_windows if isinstance(module, Mtp) else text.windows
    cos, sin = (torch.from_numpy(table).to(dtype) for table in rope_tables(text.rope, tokens))
    kv_dtype = torch.int8 if isinstance(module, Decoder) and module.int8_cache else dtype
    shapes = [(1, text.kv_heads, min(window or tokens, tokens), text.head_dim) for window in windows]
    past = [torch.zeros(shape, dtype=kv_dtype) for shape in shapes for _ in ("key", "value")]
    logits, hidden = [], []
    for start, stop in calls:
        read = [torch.from_numpy(each[None, start:stop]).to(dtype) for each in inputs]
        last, total = torch.tensor([stop - 1], dtype=torch.int32), torch.tensor(stop, dtype=torch.int32)
        outputs = module(*read, last, total, torch.arange(stop - start)[None], cos, sin, past)
        logits.append(outputs[0][0])
        hidden.append(outputs[1][0].float())
        past = list(outputs[-len(past) :])
    return torch.cat(logits).numpy(), torch.cat(hidden).numpy()


def relative_error(values: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest expected value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())
