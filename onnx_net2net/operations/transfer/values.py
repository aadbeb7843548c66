"""New values for the constants of a network: the nodes that read a constant may get different ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.algebra.weights import into_middle
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.graph.edit import Version, assign
from onnx_net2net.graph.graph import Place, dtype_of
from onnx_net2net.operations.transfer.modules import Parameter
from onnx_net2net.operations.transfer.networks import Network


@dataclass(frozen=True)
class Provenance:
    """Where the values of a tensor of the target came from.

    Attributes:
        name: The tensor.
        shape: Its shape.
        origin: "teacher", "reconstructed" (the teacher's, fitted to what it makes of examples), "identity" (a layer or
            normalisation that does nothing), "zero", "measured" or "kept".
        teacher: The teacher's tensor, "" if there is none.
        target: Its name in the target, where several nodes may have read one tensor that no longer have equal values.
        scopes: The modules of the nodes that read it, "" where the file does not tell.
    """

    name: str
    shape: tuple[int, ...]
    origin: str
    teacher: str = ""
    target: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """New values for one use of a constant.

    Attributes:
        key: Equal keys mean equal values.
        compute: Computes them, in the constant's own order.
        origin: Where they come from, as in `Provenance`.
        teacher: The teacher's tensor.
    """

    key: tuple[object, ...]
    compute: Compute
    origin: str
    teacher: str = ""


class Values:
    """The values that constants of a network get.

    Args:
        network: The network; nothing of it changes before `write`.
        factors: Multiply the units of some parameters: float64 [n] along the first axis in the common order.
        offsets: Are added to the units of some biases: float64 [n].
    """

    def __init__(
        self, network: Network, factors: Mapping[Place, Array] | None = None,
        offsets: Mapping[Place, Array] | None = None,
    ) -> None:  # fmt: skip
        self._network, self._factors, self._offsets = network, factors or {}, offsets or {}
        draft = network.analysis.graph
        self._initial = {key: draft.reader(use.constant) for key, use in network.analysis.uses.items()}
        self._values: dict[Place, _Value] = {}

    def initial(self, parameter: Parameter) -> Array:
        """Return the values that a parameter had, in the common order."""
        return parameter.common(self._initial[parameter.use]())

    def set(self, use: Place, key: tuple[object, ...], compute: Compute, origin: str, teacher: str = "") -> None:
        """Give a use of a constant values of the constant's own shape and type."""
        self._values[use] = _Value(key, compute, origin, teacher)

    def put(
        self,
        parameter: Parameter,
        key: tuple[object, ...],
        compute: Compute,
        origin: str,
        teacher: str = "",
        uses: Sequence[Place] = (),
    ) -> None:
        """Give a parameter values in the common order; of those of another shape it gets the middle.

        Args:
            parameter: The parameter.
            key: Equal keys mean equal values.
            compute: Computes the values.
            origin: Where they come from, as in `Provenance`.
            teacher: The teacher's tensor.
            uses: Other inputs that are the same constant and get the same values.
        """
        constant = self._network.original(parameter.use)
        factors, offset = self._factors.get(parameter.use), self._offsets.get(parameter.use)
        shape, kind, wanted = tuple(constant.shape), dtype_of(constant), self._network.shape(parameter)

        def values() -> Array:
            made = compute()
            if made.size == math.prod(wanted) and real(made.shape) == real(wanted):
                made = made.reshape(wanted)
            else:
                initial = np.array(self.initial(parameter))
                made = into_middle(made, initial) if made.ndim == initial.ndim else initial
            if factors is not None:
                made = made * factors.reshape(-1, *(1 for _ in made.shape[1:]))
            if offset is not None:
                made = made + offset.reshape(-1, *(1 for _ in made.shape[1:]))
            return parameter.own(made, shape).astype(kind, copy=False)

        for use in (parameter.use, *uses):
            self.set(use, (*key, id(factors), id(offset)), values, origin, teacher)

    def fill(self, use: Place, value: float, origin: str, teacher: str = "") -> None:
        """Give all elements of a constant one value."""
        constant = self._network.original(use)
        shape, kind = tuple(constant.shape), dtype_of(constant)
        self.set(use, (origin, value, shape), partial(np.full, shape, value, kind), origin, teacher)

    def has(self, use: Place) -> bool:
        """Tell whether a use of a constant gets new values."""
        return use in self._values

    def write(self) -> Iterator[Provenance]:
        """Put all values into the network's draft; constants that several nodes read in different ways are parted."""
        for uses in self._network.readings.values():
            constant = self._network.original(uses[0])
            parted: dict[object, list[Place]] = {}
            for use in uses:
                parted.setdefault(self._values[use].key if use in self._values else None, []).append(use)
            is_float = self._network.is_float(constant) and math.prod(constant.shape) > 1
            shape, name = tuple(constant.shape), str(constant.name)
            shares = sorted(parted.items(), key=lambda share: share[0] is not None)  # those that keep theirs first
            versions = [self._version(readers, shape) for _, readers in shares]
            names = assign(self._network.analysis.graph, constant, versions, f"{name}_own")
            for (_, readers), own in zip(shares, names, strict=True):
                value = self._values.get(readers[0])
                if value is not None:
                    yield Provenance(own, shape, value.origin, value.teacher, name, self._scopes(readers))
                elif is_float:
                    yield Provenance(name, shape, "kept", "", name, self._scopes(readers))

    def _version(self, readers: Sequence[Place], shape: Sequence[int]) -> Version:
        value, nodes = self._values.get(readers[0]), self._network.nodes
        return Version([(nodes[node], index) for node, index in readers], shape, value.compute if value else None)

    def _scopes(self, readers: Sequence[Place]) -> tuple[str, ...]:
        nodes = self._network.opened.model.proto.graph.node
        return tuple(scope_of(nodes[number]) for number, _ in readers)


def real(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its axes of one unit."""
    return tuple(size for size in shape if size > 1)
