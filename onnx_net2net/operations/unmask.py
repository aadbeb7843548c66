"""Removes the masks of copied experts from a trained student, so that its class needs no further nodes.

For each token a mask adds a penalty to the scores of all copies of an expert but one. Hyperplanes of the router's input
decide which one that is (`rewrite.masks`). Without masks the copies compete for all tokens. The function stays the same
only if training has lowered the penalty to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_net2net.analysis.groups import paused_gc
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.edit import Writer, drop_unread
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Graph, Node, Tensor
from onnx_net2net.graph.walk import constant_of, made_by, source
from onnx_net2net.model.history import record
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.rules import traits

_FOLDS = traits.REFOLDS | traits.CASTS | traits.COPIES | traits.ROWS
"""Operators between the penalties of all copies and the scores that they are added to."""


@dataclass(frozen=True)
class RemovedMask:
    """A mask that was removed: the name of the node that added it, and its largest penalty."""

    name: str
    penalty: float


@dataclass(frozen=True)
class Unmasking:
    """The result of `unmask`.

    Attributes:
        teacher: The model with masks.
        student: The model without masks.
        masks: The masks that were removed.
    """

    teacher: Model
    student: Model
    masks: tuple[RemovedMask, ...]

    @property
    def exact(self) -> bool:
        """Whether both compute the same, because all penalties were 0."""
        return not any(mask.penalty for mask in self.masks)


def unmask(teacher: ModelLike) -> Unmasking:
    """Remove the masks of copied experts, and their hyperplanes.

    Args:
        teacher: A model with masks: a path, a model in memory or a loaded model; it is not changed.

    Returns:
        The model without masks. Unless all penalties were 0 it computes something else; `verify` measures how far off
        it is.

    Raises:
        BadInputError: The model cannot be used.
        RefusedError: The model has no masks.
    """
    model = load(teacher)
    with paused_gc():
        opened = open_bodies(model)
        graph = Graph(opened.model)
        masks = []
        for node, plain, marks in list(_masks(graph)):
            masks.append(RemovedMask(node.name or node.outputs[0].name, marks))
            _remove(graph, node, plain)
        if not masks:
            raise RefusedError("the model has no masks of copied experts")
        drop_unread(graph, graph.kept)
        student = opened.close(graph.finish(record(model, "unmask", {}, opened.notes())))
    return Unmasking(model, student, tuple(masks))


def _masks(graph: Graph) -> Iterator[tuple[Node, Tensor, float]]:
    """Yield the nodes that add masks, with what these are added to, and the largest penalty."""
    for node in graph.nodes:
        for index in range(2) if node.op == "Add" else ():
            penalty = _penalty(graph, node.inputs[index])
            if penalty is not None:
                yield node, node.inputs[1 - index], penalty
                break


def _penalty(graph: Graph, tensor: Tensor) -> float | None:
    """Return the penalty that a tensor has for all copies but one, None if it is no mask."""
    node = made_by(source(tensor, _FOLDS), {"OneHot"})
    choice = node and made_by(source(node.inputs[0], traits.CASTS), {"ArgMax"})
    marks = node and constant_of(node.inputs[2])
    if marks is None or choice is None or not _are_sides(source(choice.inputs[0], traits.REFOLDS)):
        return None
    others, own = (float(value) for value in graph.read(marks).reshape(-1))
    return abs(others) if own == 0 and others <= 0 else None


def _are_sides(tensor: Tensor) -> bool:
    """Tell whether a tensor tells on which side of constant planes each position lies."""
    added = made_by(tensor, {"Add"})
    if added is None:
        return False
    product = made_by(added.inputs[0], {"MatMul"})
    return product is not None and all(constant_of(node.inputs[1]) is not None for node in (added, product))


def _remove(graph: Graph, node: Node, plain: Tensor) -> None:
    """Let the readers of a mask's sum read what it was added to."""
    result = node.outputs[0]
    node.outputs.clear()
    if result.name in graph.kept:
        Writer(graph, result.name).Identity(plain, name="_unmasked", result=result)
        return
    for reader in list(result.outputs):
        for index in [index for index, value in enumerate(reader.inputs) if value is result]:
            reader.inputs[index] = plain
