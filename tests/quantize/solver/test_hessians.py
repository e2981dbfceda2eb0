"""Sums of what linears read, where something is wrong with it. Their values are tested with whole walks."""

import pytest
import torch

from console.errors import InputError
from quantize.model.families import FAMILIES
from quantize.solver.hessians import Hessians


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e19])
def test_inputs_without_a_finite_hessian_are_refused_by_name(value):
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(4, 3), "second": torch.nn.Linear(4, 2)}).requires_grad_(False)
    collected = Hessians(model, [("first",), ("second",)], FAMILIES["exaone4"], "none")
    inputs = torch.ones(5, 4)
    for first, second in ((inputs, inputs), (inputs, inputs.clone().index_fill_(0, torch.tensor([2]), value))):
        collected.check()
        with collected.recording():
            model["first"](first)
            model["second"](second)
            collected.add(None)
    assert torch.equal(collected.sums["first",], torch.full((4, 4), 20.0))
    with pytest.raises(InputError, match="the Hessian of second is not finite"):
        collected.check()
