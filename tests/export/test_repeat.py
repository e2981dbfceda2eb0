"""Layers of a kind are traced once, and the graph computes what the modules do."""

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from export.onnx_graph import trace
from export.repeat import kind

WIDTH = 4


class Layer(nn.Module):
    """Adds to h and to its own state. Counts how often Python runs it."""

    runs = 0

    def __init__(self, *, scaled: bool, offset: torch.Tensor) -> None:
        super().__init__()
        self.scaled, self.offset = scaled, offset
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.norm = nn.Module()
        self.norm.scale = nn.Buffer(torch.randn(WIDTH))

    def forward(self, h, state, shared):
        """Returns the new h and state."""
        Layer.runs += 1
        product = (h + shared[0]) @ self.weight + self.offset
        if self.scaled:
            product = product * self.norm.scale * shared[1]
        return h + product.tanh(), state + product * torch.tensor([3.0])


class Model(nn.Module):
    """Layers between two products."""

    def __init__(self, scaled: list[bool], offsets: list[torch.Tensor]) -> None:
        super().__init__()
        layers = (Layer(scaled=kind, offset=offset) for kind, offset in zip(scaled, offsets, strict=True))
        self.layers = nn.ModuleList(layers)
        self.first = nn.Buffer(torch.randn(WIDTH, WIDTH))

    def forward(self, x, a, b, states):
        """Returns the last h and all states."""
        h, new = x @ self.first, []
        for layer, state in zip(self.layers, states, strict=True):
            h, state = layer(h, state, (a, b))
            new.append(state)
        return h @ self.first, *new


def traced(model: Model, *, once: bool) -> tuple[ir.Model, int]:
    """The graph, and how often a layer ran for it."""
    count = len(model.layers)
    states = [torch.randn(3, WIDTH) for _ in range(count)]
    inputs = [torch.randn(3, WIDTH), torch.randn(3, WIDTH), torch.randn(3, 1), states]
    axes = [*[{0: "rows"}] * 3, [{0: "rows"}] * count]
    names, results = ([f"{name}_{layer}" for layer in range(count)] for name in ("state", "result"))
    before = Layer.runs
    layers = [*model.layers] if once else []
    graph = trace(model, inputs, axes, ["x", "a", "b", *names], ["h", *results], layers)
    return graph, Layer.runs - before


def answers(graph: ir.Model, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in graph.graph.inputs]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [*map(torch.from_numpy, found)]


@pytest.mark.parametrize("scaled", [[True], [False] * 3, [True, False, True, True, False, False, True]])
def test_graphs_compute_what_modules_do(scaled):
    torch.manual_seed(1)
    offset = torch.tensor(0.25)
    model = Model(scaled, [offset] * len(scaled))
    graph, runs = traced(model, once=True)
    whole, all_runs = traced(model, once=False)
    assert all_runs // len(scaled) == runs // len({*scaled})
    inputs = [torch.randn(5, WIDTH), torch.randn(5, WIDTH), torch.randn(5, 1)]
    states = [torch.randn(5, WIDTH) for _ in scaled]
    for found, expected in zip(answers(graph, [*inputs, *states]), model(*inputs, states), strict=True):
        torch.testing.assert_close(found, expected)
    operators, expected = (
        sorted(node.op_type for node in model.graph if node.op_type != "Constant") for model in (graph, whole)
    )
    assert operators == expected
    assert not graph.functions
    assert "forward" not in vars(model.layers[0])


def test_layers_differ_by_constants_and_shapes_and_not_by_weights():
    offset, long = torch.tensor(0.25), torch.zeros(5000)
    layer = Layer(scaled=True, offset=offset)
    assert kind(layer) == kind(Layer(scaled=True, offset=offset))
    assert kind(layer) != kind(Layer(scaled=False, offset=offset))
    changed = long.clone()
    changed[2000] = 1  # which is not printed
    assert kind(Layer(scaled=True, offset=long)) != kind(Layer(scaled=True, offset=changed))
    half = Layer(scaled=True, offset=offset).half()
    half.offset = offset
    assert kind(layer) != kind(half)
    wider = Layer(scaled=True, offset=offset)
    wider.norm.scale = torch.zeros(WIDTH + 1)
    assert kind(layer) != kind(wider)


def test_constants_of_their_own_stay_theirs():
    """Two layers whose constants differ are two kinds."""
    torch.manual_seed(1)
    model = Model([True] * 3, [torch.tensor(0.25), torch.tensor(4.0), torch.tensor(-2.0)])
    graph, _ = traced(model, once=True)
    inputs = [torch.randn(5, WIDTH), torch.randn(5, WIDTH), torch.randn(5, 1)]
    states = [torch.randn(5, WIDTH) for _ in range(3)]
    for found, expected in zip(answers(graph, [*inputs, *states]), model(*inputs, states), strict=True):
        torch.testing.assert_close(found, expected)
