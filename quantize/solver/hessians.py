"""Sums up what the linears of a block read: the Hessians of a quantization solver.

Where norms follow the linears instead of preceding them, tokens count as `quantize.solver.token_weights` has it.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from console.errors import InputError
from quantize.solver import gptq
from quantize.solver.token_weights import weighted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from quantize.model.families import Family
    from quantize.solver.solve import Tokens

Group = tuple[str, ...]


class Hessians:
    """One Hessian [K, K] for each group of linears that read the same inputs.

    sums: the Hessians of all documents that were added.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], family: Family, tokens: Tokens) -> None:
        self._model, self._family, self._tokens = model, family, tokens
        self._inputs: dict[Group, torch.Tensor] = {}
        self._read: dict[Group, torch.Tensor] = {}
        self.sums: dict[Group, torch.Tensor] = {}
        for group in groups:
            weight = model.get_parameter(f"{group[0]}.weight")
            self.sums[group] = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the linears read, and how much attention read of each token, whenever the model runs."""
        hooks = []
        for group in self.sums:
            hooks.append(self._model.get_submodule(group[0]).register_forward_pre_hook(partial(self._keep, group)))
            if _attends(group):
                attention = self._model.get_submodule(group[0].removesuffix(".q_proj"))
                hooks.append(attention.register_forward_hook(partial(self._keep_read, group)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, importance: torch.Tensor | None) -> None:
        """Add the document that has just run through the model. importance [T] of its tokens, in a decoder."""
        for group, H in self.sums.items():
            X, read = self._inputs.pop(group).reshape(-1, len(H)), self._read.pop(group) if _attends(group) else None
            if importance is not None and self._family.is_post_norm(group[0]):
                X = self._weighted(X, importance, read)
            gptq.add_inputs(H, X)

    def check(self) -> None:
        """Raise InputError where inputs were not finite, or too large for their products."""
        for group, H in self.sums.items():
            if not all(math.isfinite(bound) for bound in H.aminmax()):
                raise InputError(
                    f"the Hessian of {group[0]} is not finite: some of its inputs are NaN or beyond 1e19; "
                    "the checkpoint is damaged, download it again"
                )

    def _weighted(self, X: torch.Tensor, importance: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        """Tokens X [T, K] by their importance [T]; those that attention reads also by how much it does, read [T]."""
        if self._tokens == "as they are":
            return X
        if self._tokens == "same size":
            return weighted(X, torch.ones_like(importance))
        return weighted(X, importance if read is None or self._tokens == "by importance" else importance + read)

    def _keep(self, group: Group, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._inputs[group] = given[0]

    def _keep_read(self, group: Group, _: nn.Module, __: object, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._read[group] = out[1]


def _attends(group: Group) -> bool:
    """Tell the linears that attention reads, of a decoder."""
    return group[0].endswith(".q_proj")
