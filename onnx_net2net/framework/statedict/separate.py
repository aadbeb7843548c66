"""Parameters that an exporter merged because they had equal values, made two again.

A fresh network has many vectors of ones and zeros, and exporters write one tensor for all of them. In training they go
apart. Which node reads whose parameter follows from the module that the node belongs to, as the exporter tells it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.statedict.match import single
from onnx_net2net.graph.graph import Constant, Graph
from onnx_net2net.model.model import Model


def separated(model: Model, entries: StateDict) -> Model:
    """Return a model in which vectors that are entries of their own are tensors of their own, under the same names.

    Args:
        model: The model.
        entries: The state dict that it was exported from.

    Returns:
        The model itself if there is nothing to do.
    """
    graph = Graph(model)
    reads = Counter(value.name for node in graph.nodes for value in node.inputs if isinstance(value, Constant))
    is_changed = False
    for node, proto in zip(graph.nodes, model.proto.graph.node, strict=True):
        own = {name: entry for name, entry in entries.items() if name.rpartition(".")[0] == scope_of(proto)}
        for index, value in enumerate(node.inputs):
            if isinstance(value, Constant) and reads[value.name] > 1 and value.name not in own:
                name = _called(own, value.shape, graph.reader(value))
                if name is not None:
                    node.inputs[index] = graph.copied(value, name)
                    is_changed = True
    return graph.finish() if is_changed else model


def _called(own: StateDict, shape: Sequence[int], read: Callable[[], Array]) -> str | None:
    """Return which entry of a module is a vector; matrices are merged where they are tied, and stay so."""
    for name, entry in own.items():
        is_alike = entry.shape == tuple(shape) and len(entry.shape) == 1 and is_float(entry.dtype)
        if is_alike and np.array_equal(single(entry.read()), single(read())):
            return name
    return None
