"""How large values become inside a block, where graphs hold them in the dtype of the folder.

A norm behind a linear makes the block's output small again, so the hidden states between blocks do not tell.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from quantize.calibration.hidden_states import refuse_overflow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def within_range(block: nn.Module, path: str, dtype: torch.dtype) -> Iterator[None]:
    """Look at what the linears, norms and activation functions of a block at `path` read and put out while it runs.

    Raises InputError in the end where `dtype` cannot hold the largest magnitude, naming the first of them, in the order
    in which data passes.
    """
    largest: dict[str, torch.Tensor] = {}  # on the device, which need not be waited for until the end

    def look(name: str, _: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        for what, values in ((f"the input of {name}", given[0]), (f"the output of {name}", out)):
            magnitude = torch.stack(values.aminmax()).abs().amax()  # abs() of all values would copy them
            largest[what] = torch.maximum(largest.get(what, magnitude), magnitude)

    hooks = [
        module.register_forward_hook(partial(look, f"{path}.{name}" if name else path))
        for name, module in block.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for what, magnitude in largest.items():
        refuse_overflow(what, float(magnitude), dtype)
