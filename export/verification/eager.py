"""What an eager decoder or MTP layer answers over a KV cache: in float32, or in 16 bits as on a card."""

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
"""The first token that a call reads, and the first that it does not."""


def cached_answer(
    module: Decoder | Mtp, text: Text, read: Sequence[NDArray[np.float32]], calls: Sequence[Call], dtype: torch.dtype
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [T, V] and hidden states [T, H] of all tokens, call by call.

    read: embeddings [T, H], for the MTP layer hidden states as well. dtype: of activations, and of keys and values
    where they are not int8. Hidden states are nothing of use where there is no MTP layer.
    """
    tokens, windows = calls[-1][1], text.mtp_windows if isinstance(module, Mtp) else text.windows
    cos, sin = (torch.from_numpy(table).to(dtype) for table in rope_tables(text.rope, tokens))
    kept = torch.int8 if isinstance(module, Decoder) and module.kv_scales else dtype
    shapes = [(1, text.kv_heads, min(window or tokens, tokens), text.head_dim) for window in windows]
    past = [torch.zeros(shape, dtype=kept) for shape in shapes for _ in ("key", "value")]
    logits, hidden = [], []
    for start, stop in calls:
        inputs = [torch.from_numpy(each[None, start:stop]).to(dtype) for each in read]
        last, total = torch.tensor([stop - 1], dtype=torch.int32), torch.tensor(stop, dtype=torch.int32)
        outputs = module(*inputs, last, total, torch.arange(stop - start)[None], cos, sin, past)
        logits.append(outputs[0][0])
        hidden.append(outputs[1][0].float())
        past = list(outputs[-len(past) :])
    return torch.cat(logits).numpy(), torch.cat(hidden).numpy()


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest, relative to the largest value that was expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
