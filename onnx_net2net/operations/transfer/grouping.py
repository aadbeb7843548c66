"""A teacher's grouped convolutions with the groups of a target that has fewer: blocks of weights, and zeros around."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Compute, Network, Networks


def regrouped(networks: Networks, found: Alignment) -> Model | None:
    """Return the teacher with as few groups as the target has, None if it has them.

    Args:
        networks: The two networks; the draft of the teacher must not be used again if it is changed.
        found: Which of their modules correspond.
    """
    analysis, changed = networks.teacher.analysis, False
    for module, groups in _changes(networks, found):
        constant, before = analysis.uses[module.node, 1].constant, _groups(networks.teacher, module)
        out, read, *kernel = constant.shape
        shape = (out, read * before // groups, *kernel)
        analysis.draft.replace(constant, shape, partial(_blocks, analysis.draft.reader(constant), before, groups))
        networks.teacher.nodes[module.node].attrs["group"] = groups
        changed = True
    return analysis.draft.finish() if changed else None


def _changes(networks: Networks, found: Alignment) -> Iterator[tuple[Module, int]]:
    """Yield convolutions of the teacher with the groups that they have in the target, if these are fewer and larger."""
    nodes = networks.teacher.nodes
    readings = [[use for use in uses if nodes[use.node].op not in ("Shape", "Size")]
                for uses in networks.teacher.analysis.readings()]  # fmt: skip
    alone = {(uses[0].node, uses[0].input) for uses in readings if len(uses) == 1}
    for old, new in found.pairs:
        before, after = _groups(networks.teacher, old), _groups(networks.target, new)
        if 0 < after < before and before % after == 0 and new.shape[0] >= old.shape[0] and (old.node, 1) in alone:
            yield old, after


def _groups(network: Network, module: Module) -> int:
    """Return the number of groups of a convolution, 0 for other layers."""
    node = network.nodes[module.node]
    return int(node.attrs.get("group", 1)) if node.op == "Conv" and module.is_layer else 0


def _blocks(read: Compute, before: int, after: int) -> Array:
    """Return weights of (out, in / after, *kernel) that compute what those of (out, in / before, *kernel) do."""
    weights, each = read(), np.arange(before // after)
    out, inputs, *kernel = weights.shape
    blocks = np.zeros((after, len(each), out // before, len(each), inputs, *kernel), weights.dtype)
    parts = weights.reshape(after, len(each), out // before, inputs, *kernel)
    blocks[:, each, :, each] = parts.swapaxes(0, 1)
    return blocks.reshape(out, len(each) * inputs, *kernel)
