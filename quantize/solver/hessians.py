"""Collect the Hessians of a block's linears, and the errors of their inputs, while documents run through it.

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
from quantize.solver.input_errors import InputErrors
from quantize.solver.token_weights import token_factors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import nn

    from quantize.model.families import Family
    from quantize.solver.solve import TokenWeighting

Group = tuple[str, ...]


class Hessians:
    """One Hessian [K, K] for each group of linears that read the same inputs, and the errors of these inputs.

    sums: the Hessians, summed over all documents that were added. errors: the errors of some groups.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        family: Family,
        tokens: TokenWeighting,
        with_errors: Collection[Group] = (),
    ) -> None:
        self._model, self._family, self._tokens = model, family, tokens
        self._inputs: dict[Group, torch.Tensor] = {}
        self._unquantized: dict[Group, torch.Tensor] = {}
        self._attention: dict[Group, torch.Tensor] = {}
        self.sums = {group: self._square(group) for group in groups}
        self.errors = {group: InputErrors(self._square(group)) for group in with_errors}

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

    def keep_unquantized(self) -> None:
        """Keep what was recorded as the inputs in the unquantized model, for the document that is added next."""
        self._unquantized = {group: self._inputs[group] for group in self.errors}

    def add(self, token_weights: torch.Tensor | None) -> None:
        """Add the document that has just run through the model. token_weights: [T] in a decoder, else None."""
        for group, H in self.sums.items():
            X = self._inputs.pop(group).reshape(-1, len(H))
            unquantized = self._unquantized.pop(group).reshape(X.shape) if group in self.errors else None
            attention = self._attention.pop(group) if _feeds_attention(group) else None
            if token_weights is not None and self._family.is_post_norm(group[0]) and self._tokens != "none":
                factors = self._factors(X, token_weights, attention)
                X = X * factors
                unquantized = None if unquantized is None else unquantized * factors
            gptq.add_inputs(H, X)
            if unquantized is not None:
                self.errors[group].add(X, unquantized)

    def check(self) -> None:
        """Raise InputError where inputs were not finite, or too large for their products."""
        for group, H in self.sums.items():
            if not all(math.isfinite(bound) for bound in H.aminmax()):
                raise InputError(
                    f"the Hessian of {group[0]} is not finite: some of its inputs are NaN or beyond 1e19; "
                    "the checkpoint is damaged, download it again"
                )

    def _square(self, group: Group) -> torch.Tensor:
        weight = self._model.get_parameter(f"{group[0]}.weight")
        return torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)

    def _factors(self, X: torch.Tensor, token_weights: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor:
        """Weigh tokens X [T, K]; attention [T], where it reads these linears, is added to the weights [T]."""
        if self._tokens == "equal norms":
            return token_factors(X, torch.ones_like(token_weights))
        if attention is None or self._tokens == "weights":
            return token_factors(X, token_weights)
        return token_factors(X, token_weights + attention)

    def _record_inputs(self, group: Group, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs[group] = inputs[0]

    def _record_attention(
        self, group: Group, _: nn.Module, __: object, outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self._attention[group] = outputs[1]


def _feeds_attention(group: Group) -> bool:
    """Tell whether a decoder's attention reads the outputs of these linears."""
    return group[0].endswith(".q_proj")
