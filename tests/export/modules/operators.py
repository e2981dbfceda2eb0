"""Runs a function as a traced graph in ONNX Runtime, and compares it with the same function in PyTorch."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from export.onnx_graph import trace

TOLERANCE = 2e-6  # float32 sums in another order


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.function(*inputs)


def run_on_cpu(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"])


def check(function, inputs, axes, count=1, tolerance=TOLERANCE):
    """Trace with these inputs, run the graph on them, compare every output with eager mode."""
    names, results = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(count)]
    module = Call(function)
    model = trace(module, [list(inputs)], [list(axes)], names, results)
    session = run_on_cpu(model)
    outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    expected = function(*inputs)
    for output, reference in zip(outputs, expected if count > 1 else [expected], strict=True):
        assert output.shape == tuple(reference.shape)
        np.testing.assert_allclose(
            output, reference.numpy(), rtol=tolerance, atol=tolerance * float(reference.abs().max())
        )
