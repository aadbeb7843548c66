"""Which outputs of a model never move, and inputs that may move them.

An output that is the same in all runs proves nothing about a student: a detector that finds nothing finds nothing
with weights of zero too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array, epsilon
from onnx_net2net.model.functions import inlined
from onnx_net2net.model.protos import captured, free_inputs
from onnx_net2net.proof.divergence import differ
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import Feeds, InputSpec, draw

_BOLD = (3.0, 10.0, 1e2, 1e3, 1e4, 1e5)
"""Standard deviations of float inputs, or factors of given ones, that may move an output which others did not."""

_ROUNDS = 3

_FOLDS: tuple[Callable[[Array], Array], ...] = (lambda x: x, np.abs, lambda x: -np.abs(x))


def that_should_move(proto: onnx.ModelProto) -> list[str]:
    """Return the outputs that are computed from values of inputs, and not from their sizes alone."""
    graph = inlined(proto).graph
    moving = {value.name for value in free_inputs(graph)}
    for node in graph.node:
        if node.op_type not in traits.SHAPE_ONLY and not moving.isdisjoint((*node.input, *captured([node]))):
            moving.update(node.output)
    return [value.name for value in graph.output if value.name in moving]


def unmoved(slack: Mapping[str, float], answers: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """Return those of some outputs that are the same in all answers; sequences and maps are taken to move.

    Args:
        slack: For each of the outputs, what a student may be off by: moving by less shows nothing.
        answers: All outputs of several runs.
    """
    first, *others = answers
    return {
        name: own
        for name, own in slack.items()
        if name in first and not any(differ(first[name], one[name], own) for one in others)
    }


def bolder(
    specs: Sequence[InputSpec], feeds: Feeds, binding: Mapping[str, int] | None, rng: np.random.Generator
) -> Iterator[Feeds]:
    """Yield inputs of the same sizes that may move what the usual ones do not: larger ones, and of one sign.

    Args:
        specs: What the model takes.
        feeds: Inputs that it accepts.
        binding: The sizes of the dynamic axes there; None for given inputs, which are scaled and shuffled instead.
        rng: The source of the values.
    """
    for _, scale, fold in itertools.product(range(_ROUNDS), _BOLD, _FOLDS):
        values = draw(specs, binding, rng, scale=scale) if binding is not None else _shuffled(feeds, scale, rng)
        floats = [spec for spec in specs if spec.kind == "real" and epsilon(spec.dtype) is not None]
        with np.errstate(over="ignore"):
            yield {**values, **{s.name: np.asarray(fold(values[s.name])).astype(s.dtype) for s in floats}}


def _shuffled(feeds: Feeds, scale: float, rng: np.random.Generator) -> Feeds:
    """Return given inputs in another order, the floats scaled."""
    mixed = {name: rng.permutation(values.reshape(-1)).reshape(values.shape) for name, values in feeds.items()}
    with np.errstate(over="ignore"):
        return {
            name: (values * np.asarray(scale)).astype(values.dtype) if epsilon(values.dtype) is not None else values
            for name, values in mixed.items()
        }
