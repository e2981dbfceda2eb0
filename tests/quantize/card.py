"""A stand-in for a card in PyTorch: tensors that are on a device of their own, with their values on the CPU.

What CUDA refuses is refused here: operators whose tensors are on two devices, and `numpy()` of a tensor on the card.
"""

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "card"
_setup_privateuseone_for_python_backend(NAME)
CARD = torch.device(NAME, 0)
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")  # by indices that are on the host, CUDA allows


class OnCard(torch.Tensor):
    """A tensor whose device is the card."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnCard":
        layout: dict[str, Any] = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, **layout, dtype=values.dtype, device=CARD)
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.values.tolist()


class Card(TorchDispatchMode):
    """Within it, tensors can be made on the card and moved to it. capacity: bytes, at most, of one tensor."""

    capacity = 2**40

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """Compute on the CPU; the result is on the card where the device that was asked for is, or else any argument."""
    tensors: list[torch.Tensor] = []
    inner = [_inner(one, tensors) for one in args], {name: _inner(one, tensors) for name, one in kwargs.items()}
    on_card = any(isinstance(one, OnCard) for one in tensors)
    if func is torch.ops.aten._fused_sdp_choice.default and on_card:
        return 0  # attention made of plain operators
    name, aliases = _described(func)
    if on_card and name not in MOVES:
        for one in tensors:
            if not isinstance(one, OnCard) and one.dim() > 0 and name not in INDEXING:
                raise RuntimeError(f"{name}: a tensor {tuple(one.shape)} is on the CPU, another on the card")
    result = func(*inner[0], **inner[1])
    device = kwargs.get("device")
    if not (on_card if device is None else torch.device(device).type == NAME):
        return result
    wrapped = _on_card(result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if aliases else wrapped


@cache
def _described(func) -> tuple[str, bool]:
    """An operator's name, and whether a result is, or shows, one of its arguments."""
    schema = func._schema
    return schema.name, any(one.alias_info is not None for one in (*schema.arguments, *schema.returns))


def _inner(one, tensors):
    """An argument as it is on the CPU. Its tensors are added to `tensors`; by hand, as torch's pytrees take longest."""
    if isinstance(one, torch.Tensor):
        tensors.append(one)
        return one.values if isinstance(one, OnCard) else one
    if isinstance(one, list | tuple):
        return [_inner(part, tensors) for part in one]
    return torch.device("cpu") if isinstance(one, torch.device) and one.type == NAME else one


def _on_card(result):
    if isinstance(result, list | tuple):
        return type(result)(_on_card(part) for part in result)
    if type(result) is not torch.Tensor:
        return result
    if result.nbytes > Card.capacity:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return OnCard(result)
