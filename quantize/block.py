"""Quantize one block of a model: the way of a weight from being read to being written.

    load the block
    run the evaluation documents through it
    run the calibration documents through it, with inputs of the quantized and of the unquantized blocks in front of it,
        and sum up the Hessians of its linears and the errors of their inputs
    solve each group of linears that read the same inputs, and put the quantized weights in their place
    run the calibration documents through the quantized block
    write the block and free it

The memory rule is kept here: one block's weights and its Hessians are in memory, however many layers the model has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from console.progress import say
from quantize.calibration.block_inputs import BlockInputs
from quantize.calibration.overflow import overflow_check
from quantize.checkpoint.formats import pack_weight, side_by_side, weight_metadata
from quantize.model.families import full_paths
from quantize.report import LinearReport
from quantize.solver.hessians import Hessians
from quantize.solver.solve import solve_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from quantize.checkpoint.writer import CheckpointWriter
    from quantize.model.families import Linears
    from quantize.scheme import Scheme
    from quantize.solver.hessians import Group
    from quantize.solver.solve import Recipe, Solved

Kwargs = Callable[[BlockInputs, int], dict[str, Any]]
"""Makes the keyword arguments of a block for a document, which it reads in addition to hidden states."""


def no_kwargs(_: BlockInputs, __: int) -> dict[str, Any]:
    """Make the keyword arguments of a block that reads nothing but hidden states."""
    return {}


@dataclass(frozen=True)
class BlockQuantizer:
    """Quantizes the blocks of a model, one after the other in the order of data."""

    scheme: Scheme
    """The model, and how each linear is quantized."""
    recipe: Recipe
    """How linears are solved."""
    writer: CheckpointWriter
    """Where blocks are written."""
    calibration: BlockInputs
    """Inputs of the next block, from the quantized blocks in front of it."""
    evaluation: BlockInputs | None
    """Inputs of the next block, from the unquantized blocks; None where nothing is evaluated."""
    unquantized: BlockInputs | None
    """The calibration documents again, from the unquantized decoder: what inputs would be without errors. They begin
    at the embeddings. None where no linear makes up for errors."""

    def quantize(self, path: str, linears: Linears, kwargs: Kwargs, *, last: bool = False) -> list[LinearReport]:
        """Quantize one block. linears: below its path. last: nothing reads its outputs."""
        module, groups = self.load(path), full_paths(path, linears)
        if self.evaluation is not None and not last:
            self._advance(self.evaluation, module, path, kwargs)
        solved = self._solve(path, groups, kwargs, last)
        if not last:
            self._advance(self.calibration, module, path, kwargs)
        if solved or not (path == self.scheme.family.head and self.scheme.tied):
            self.write(path, groups, solved)
        self.free(path)
        return [self._report(linear, result) for linear, result in solved.items()]

    def load(self, path: str) -> nn.Module:
        """Fill a module in float32: weights to be quantized as in the checkpoint, others rounded to the new dtype."""
        module: nn.Module = self.scheme.model.get_submodule(path)
        state = {}
        for name, _ in module.named_parameters():
            full = f"{path}.{name}"
            tensor = self.read(full)
            if self.scheme.quantizers.get(full.removesuffix(".weight")) is None:
                tensor = tensor.to(self.scheme.settings.torch_dtype)
            state[name] = tensor.to(self.scheme.settings.device, torch.float32)
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor of the checkpoint. Raises InputError where it is not finite or the new dtype cannot hold it."""
        if self.scheme.tied and name == f"{self.scheme.family.head}.weight":
            name = f"{self.scheme.family.embeddings}.weight"
        return self.scheme.checkpoint.load_for(name, self.scheme.settings.torch_dtype)

    def hessians(self, path: str, groups: Sequence[Group], kwargs: Kwargs) -> Hessians:
        """Run the calibration documents through a block.

        Returns the Hessian of each group of its linears and, in the decoder, the errors of their inputs.
        """
        scheme = self.scheme
        unquantized = self.unquantized if path in scheme.family.decoder_blocks(scheme.config) else None
        with_errors = groups if unquantized else ()
        collected = Hessians(scheme.model, groups, scheme.family, self.recipe.tokens, with_errors)
        module, states = scheme.model.get_submodule(path), self.calibration.states.read()

        def add(i: int) -> None:
            collected.keep_unquantized()
            arguments = kwargs(self.calibration, i)
            module(self._input(path, states[i]), **arguments)
            collected.add(arguments.get("token_weights"))

        with collected.recording():
            if unquantized:
                self._advance(unquantized, module, path, kwargs, add)
            else:
                with overflow_check(module, path, scheme.settings.torch_dtype):
                    for i in range(len(states)):
                        add(i)
        collected.check()
        return collected

    def write(self, path: str, groups: Linears, solved: dict[str, Solved]) -> None:
        """Write a loaded block. Linears that read the same inputs lie side by side in the file."""
        settings, module = self.scheme.settings, self.scheme.model.get_submodule(path)
        dtype = settings.torch_dtype
        state = {f"{path}.{name}": tensor for name, tensor in module.named_parameters()}
        parts: dict[str, dict[str, torch.Tensor]] = {}
        metadata: list[tuple[str, torch.Tensor]] = []
        for linear in sum(groups, ()):
            weight, bias = state.pop(f"{linear}.weight"), state.pop(f"{linear}.bias", None)
            if result := solved.get(linear):
                solution = (result.codes, result.scales, result.quantizer)
                parts[linear] = pack_weight(*solution, settings.format)
                small = weight_metadata(*solution, settings)
                metadata += [(f"{linear}.{suffix}", tensor) for suffix, tensor in small.items()]
            else:
                parts[linear] = {"weight": weight.to(dtype)}
            if bias is not None:
                parts[linear]["bias"] = bias.to(dtype)
        rest = [(name, tensor.to(dtype)) for name, tensor in state.items()]
        self.writer.write([*side_by_side(groups, parts), *rest], metadata)

    def free(self, path: str) -> None:
        """Take the weights of a block out of memory."""
        self.scheme.model.get_submodule(path).to("meta")

    def _solve(self, path: str, groups: Linears, kwargs: Kwargs, last: bool) -> dict[str, Solved]:
        """Solve the linears of a loaded block and put the quantized weights into it."""
        model, settings = self.scheme.model, self.scheme.settings
        quantizers = ((group, self.scheme.quantizers[group[0]]) for group in groups)
        to_solve = {group: quantizer for group, quantizer in quantizers if quantizer is not None}
        if not to_solve and not last:  # the last block runs even so, to check that the new dtype holds its values
            return {}
        solved: dict[str, Solved] = {}
        collected = self.hessians(path, list(to_solve), kwargs)
        for group, quantizer in to_solve.items():
            weights = [model.get_parameter(f"{linear}.weight") for linear in group]
            H, errors = collected.sums.pop(group), collected.errors.pop(group, None)
            results = solve_together(weights, H, quantizer, settings.solver, self.recipe, errors)
            for linear, weight, result in zip(group, weights, results, strict=True):
                weight.copy_(result.weight)
                solved[linear] = result
        return solved

    def _advance(
        self,
        inputs: BlockInputs,
        module: nn.Module,
        path: str,
        kwargs: Kwargs,
        after: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Run documents through a block: its outputs become the hidden states that the next block reads.

        after: called after each document; what it runs through the block is checked for overflow as well.
        """

        def run(i: int) -> torch.Tensor:
            output: torch.Tensor = module(self._input(path, states[i]), **kwargs(inputs, i))
            after(i)
            return output.reshape(-1, output.shape[-1])

        states = inputs.states.read()
        with overflow_check(module, path, inputs.documents.dtype):
            inputs.states.write_outputs(run, states.layout.lengths)

    def _input(self, path: str, states: torch.Tensor) -> torch.Tensor:
        """Shape hidden states for a block: patches [P, width] in the vision tower, [1, T, width] elsewhere."""
        states = states.to(self.scheme.settings.device)
        return states if self.scheme.family.tower(path) == "vision" else states[None]

    def _report(self, path: str, solved: Solved) -> LinearReport:
        if solved.solver != self.scheme.settings.solver:
            say(f"{path} is quantized by RTN: its inputs are so large that its Hessian has no factor in float32")
        elif solved.error is None:
            say(f"{path}: its error is unknown, because its Hessian is not positive semidefinite in float32")
        return LinearReport(
            path,
            self.scheme.family.tower(path),
            tuple(solved.codes.shape),
            solved.quantizer.bits,
            solved.quantizer.group_size,
            solved.solver,
            solved.error,
            solved.error_rtn,
            solved.damping,
        )
