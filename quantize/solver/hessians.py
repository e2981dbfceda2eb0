"""Collect the Hessians of a block's linears while calibration documents run through it.

Where norms follow the linears, tokens are weighted as `quantize.solver.token_weights` describes.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from console.errors import InputError
from quantize.solver import gptq
from quantize.solver.token_weights import weigh_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from quantize.model.families import Family
    from quantize.solver.solve import TokenWeighting

Group = tuple[str, ...]


class Hessians:
    """One Hessian [K, K] for each group of linears that read the same inputs.

    sums: the Hessians, summed over all documents that were added.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], family: Family, tokens: TokenWeighting) -> None:
        self._model, self._family, self._tokens = model, family, tokens
        self._inputs: dict[Group, torch.Tensor] = {}
        self._attention: dict[Group, torch.Tensor] = {}
        self.sums: dict[Group, torch.Tensor] = {}
        for group in groups:
            weight = model.get_parameter(f"{group[0]}.weight")
            self.sums[group] = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the inputs of linears, and the attention that each token receives, whenever the model runs."""
        hooks = []
        for group in self.sums:
            linear = self._model.get_submodule(group[0])
            hooks.append(linear.register_forward_pre_hook(partial(self._record_inputs, group)))
            if _feeds_attention(group):
                attention = self._model.get_submodule(group[0].removesuffix(".q_proj"))
                hooks.append(attention.register_forward_hook(partial(self._record_attention, group)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, token_weights: torch.Tensor | None) -> None:
        """Add the document that has just run through the model. token_weights: [T] in a decoder, else None."""
        for group, H in self.sums.items():
            X = self._inputs.pop(group).reshape(-1, len(H))
            attention = self._attention.pop(group) if _feeds_attention(group) else None
            if token_weights is not None and self._family.is_post_norm(group[0]):
                X = self._weighted(X, token_weights, attention)
            gptq.add_inputs(H, X)

    def check(self) -> None:
        """Raise InputError where inputs were not finite, or too large for their products."""
        for group, H in self.sums.items():
            if not all(math.isfinite(bound) for bound in H.aminmax()):
                raise InputError(
                    f"the Hessian of {group[0]} is not finite: some of its inputs are NaN or beyond 1e19; "
                    "the checkpoint is damaged, download it again"
                )

    def _weighted(self, X: torch.Tensor, token_weights: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor:
        """Weigh tokens X [T, K]; attention [T], where it reads these linears, is added to the weights [T]."""
        if self._tokens == "none":
            return X
        if self._tokens == "equal norms":
            return weigh_tokens(X, torch.ones_like(token_weights))
        if attention is None or self._tokens == "weights":
            return weigh_tokens(X, token_weights)
        return weigh_tokens(X, token_weights + attention)

    def _record_inputs(self, group: Group, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs[group] = inputs[0]

    def _record_attention(
        self, group: Group, _: nn.Module, __: object, outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self._attention[group] = outputs[1]


def _feeds_attention(group: Group) -> bool:
    """Tell whether a decoder's attention reads the outputs of these linears."""
    return group[0].endswith(".q_proj")
