"""Overflow inside a block: values that the dtype of the result cannot hold, as graphs compute in it.

A norm behind a linear makes the block's output small again, so hidden states between blocks do not show it.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def overflow_check(block: nn.Module, path: str, dtype: torch.dtype) -> Iterator[None]:
    """Record the largest input and output of a block's linears, norms and activation functions while it runs.

    path: of the block, for messages. Raises InputError in the end where `dtype` cannot hold one of them, naming the
    first in the order in which data passes.
    """
    maxima: dict[str, torch.Tensor] = {}  # on the device, which computes on until the end

    def record(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for place, values in ((f"the input of {name}", inputs[0]), (f"the output of {name}", output)):
            maximum = torch.stack(values.aminmax()).abs().amax()  # abs() of all values would copy them
            maxima[place] = torch.maximum(maxima.get(place, maximum), maximum)

    hooks = [
        module.register_forward_hook(partial(record, f"{path}.{name}" if name else path))
        for name, module in block.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for place, maximum in maxima.items():
        refuse_overflow(place, float(maximum), dtype)


def refuse_overflow(place: str, maximum: float, dtype: torch.dtype) -> None:
    """Raise InputError, naming the place, where `dtype` cannot hold a magnitude."""
    if not maximum <= torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        wider = dtype == torch.float16 and math.isfinite(maximum)
        advice = "use --dtype bfloat16" if wider else "the checkpoint is damaged, download it again"
        raise InputError(f"{place} reaches {maximum:.3g}, {name} cannot hold it; {advice}")
