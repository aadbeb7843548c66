"""Mixtures whose gates are a Softmax over all experts, with more of them in a target: copies share what one had.

If log c is subtracted from the logits of an expert's c copies, the Softmax gives each copy the c-th part of the
expert's gate, and the sum over all experts stays the same. The bias of the router takes log c; where all experts have
equally many copies, that makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Growth, compose
from onnx_net2net.graph.graph import Place
from onnx_net2net.graph.walk import source
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.networks import Network, Networks
from onnx_net2net.rules import traits


@dataclass
class Sharing:
    """Softmaxes over dims that grow, whose results are copies' parts.

    Attributes:
        offsets: What is added to the units of the target's biases.
        nodes: The Softmaxes, and the sums behind them; the teacher needs no factors there.
    """

    offsets: dict[Place, Array] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)


def share_gates(networks: Networks, found: Alignment, growth: Growth) -> Sharing:
    """Let Softmaxes over dims that grow give copies their parts.

    Args:
        networks: The two networks; the teacher has not been grown yet.
        found: Which of their modules correspond.
        growth: Map of each dim of the teacher that grows.

    Returns:
        The Softmaxes for which that can be done.
    """
    sharing, teacher = Sharing(), networks.teacher
    layers = {old.end: new for old, new in found.pairs if old.is_layer and "bias" in old.parameters}
    for number, said in teacher.analysis.said.items():
        for position in said.shares:
            axis = (teacher.analysis.input_axes(number, 0) or ())[position]
            map = compose(axis, growth)
            sums = _sums_behind(teacher, number, position)
            if not leaf_set(axis) & growth.keys() or map.kind.any() or not sums:
                continue
            copies = np.bincount(map.index)[map.index]
            if np.ptp(copies):
                made = source(teacher.nodes[number].inputs[0], traits.CASTS | traits.COPIES)
                layer = layers.get(teacher.numbers[id(made.inputs[0])]) if made.inputs else None
                if layer is None or "bias" not in layer.parameters or layer.shape[0] != len(copies):
                    continue
                sharing.offsets[layer.parameters["bias"].use] = -np.log(copies)
            sharing.nodes |= {number, *sums}
    return sharing


def _sums_behind(network: Network, number: int, position: int) -> set[int]:
    """Return the sums that weigh by a Softmax over its axis; none if something else is done with its result."""
    analysis, node = network.analysis, network.nodes[number]
    dims = leaf_set((analysis.input_axes(number, 0) or ())[position])
    found, seen, pending = set[int](), {node.outputs[0].name}, [node.outputs[0]]
    while pending:
        tensor = pending.pop()
        if tensor.name in analysis.kept:
            return set()
        for reader in tensor.outputs:
            place = network.numbers[id(reader)]
            said = analysis.said.get(place)
            if said is None or sum(one.name in seen for one in reader.inputs) > 1:
                return set()
            if any(dims & leaf_set(contraction.axis) for contraction in said.contractions):
                found.add(place)
            elif said.pointwise == "linear" or reader.op in traits.MOVES | traits.TIMES:
                new = [output for output in reader.outputs if output.name not in seen]
                seen.update(output.name for output in new)
                pending += new
            elif reader.op not in traits.SHAPES:
                return set()
    return found
