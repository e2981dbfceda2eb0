"""Layers of the same kind are traced once: tracing takes a second a layer, and a model has close to a hundred.

While a model is traced, the first layer of each kind runs between two nodes that mark where it begins and ends, and
every other one is a single node. In the graph, what lies between the marks is then put in place of all of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    Tensors = Tensor | tuple["Tensors", ...]

_BEGIN, _END, _LAYER = "begin", "end", "layer"  # domains of the nodes; the operator is the name of the kind
_NOT_IN_A_GRAPH = {*vars(torch.nn.Module()), "byte_ranges"}


def kind(module: nn.Module) -> str:
    """All that a module's graph depends on: everything about it but the values of its weights and where they lie."""
    parts = []
    for name, part in module.named_modules():
        attributes = {key: value for key, value in vars(part).items() if key not in _NOT_IN_A_GRAPH}
        # Other tensors become constants of the graph, and a long one is printed in part.
        parts.append((name, type(part).__qualname__, pytree.tree_map_only(Tensor, id, attributes)))
    return repr((parts, [(name, weight.shape, weight.dtype) for name, weight in _weights(module).items()]))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Repeated:
    """Layers of a model that is traced.

    A layer takes tensors and tuples of them. What it returns, one tensor or a tuple, has the shapes and dtypes of the
    first tensors that it takes.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        """layers: anywhere in the model, in the order in which they run."""
        names = {module: name for name, module in model.named_modules()}
        kinds: dict[str, str] = {}
        self._weights: dict[str, list[str]] = {}  # of the first layer of each kind, by their names in the graph
        self._outputs: dict[str, int] = {}
        self._forwards: dict[nn.Module, Callable[..., Tensors]] = {}
        for layer in layers:
            name = kinds.setdefault(kind(layer), f"kind_{len(kinds)}")
            if name in self._weights:
                self._forwards[layer] = partial(self._as_one_node, name, layer)
            else:
                self._weights[name] = [f"{names[layer]}.{weight}" for weight in _weights(layer)]
                self._forwards[layer] = partial(self._between_marks, name, layer.forward)

    @contextmanager
    def once(self) -> Iterator[None]:
        """Trace the model within this."""
        for layer, forward in self._forwards.items():
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self._forwards:
                del layer.forward

    def expand(self, model: ir.Model) -> None:
        """Put a layer's nodes wherever a node stands for one."""
        nodes = {(node.domain, node.op_type): node for node in model.graph if node.domain in (_BEGIN, _END)}
        for name, weights in self._weights.items():
            begin, end = nodes[_BEGIN, name], nodes[_END, name]
            taken = [*begin.outputs, *map(model.graph.initializers.get, weights)]
            function = _function(name, model.graph, taken, end.inputs)
            model.functions[function.identifier()] = function
            end.domain = _LAYER  # the first layer is now called as all others are
            _replace_inputs(end, [*begin.inputs, *taken[len(begin.outputs) :]])
        InlinePass()(model)

    def _between_marks(self, name: str, forward: Callable[..., Tensors], *arguments: Tensors) -> Tensors:
        tensors, tree = pytree.tree_flatten(arguments)
        results = forward(*pytree.tree_unflatten(_node(_BEGIN, name, tensors, tensors), tree))
        tensors, tree = pytree.tree_flatten(results)
        self._outputs[name] = len(tensors)
        marked: Tensors = pytree.tree_unflatten(_node(_END, name, tensors, tensors), tree)
        return marked

    def _as_one_node(self, name: str, layer: nn.Module, *arguments: Tensors) -> Tensors:
        tensors, outputs = pytree.tree_leaves(arguments), self._outputs[name]
        results = _node(_LAYER, name, [*tensors, *_weights(layer).values()], tensors[:outputs])
        return tuple(results) if outputs > 1 else results[0]


def _node(domain: str, name: str, inputs: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """A node with an output like each of these tensors."""
    dtypes, shapes = [tensor.dtype for tensor in like], [tensor.shape for tensor in like]
    return [*torch.onnx.ops.symbolic_multi_out(f"{domain}::{name}", inputs, dtypes=dtypes, shapes=shapes, version=1)]


def _function(
    name: str, graph: ir.Graph, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value | None]
) -> ir.Function:
    """The nodes between these values as a function. inputs: None for one that it does not use."""
    given, found = ([value for value in values if value is not None] for values in (inputs, outputs))
    body = ir.convenience.extract(graph, given, found)
    for constant in [value for value in body.initializers.values() if value not in body.inputs]:
        node = ir.node("Constant", [], {"value": constant.const_value})  # functions have no initializers
        body.insert_before(body[0], node)
        constant.replace_all_uses_with(node.outputs[0])
    body.initializers.clear()
    for place, value in enumerate(inputs):
        if value is None:
            body.inputs.insert(place, ir.Value(name=f"unused_{place}"))
    return ir.Function(_LAYER, name, graph=body, attributes=[])


def _replace_inputs(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
