"""Where the values of a graph's inputs go: which operators they reach, and which tables bound them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx
from onnx import TensorProto, numpy_helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.model.protos import bodies, constants_in, integer
from onnx_net2net.rules import traits

AxisSize = int | str
"""A number, the name of a dynamic axis, or arithmetic over such names."""


def declared_shape(info: onnx.ValueInfoProto) -> tuple[AxisSize, ...]:
    """Return the declared sizes; an axis without a usable name gets one of its own."""
    return tuple(
        dim.dim_value if dim.dim_value > 0
        else f"{info.name}[{axis}]" if dim.dim_param.strip() in {"", "?", "-1", "None"}
        else dim.dim_param.strip()
        for axis, dim in enumerate(info.type.tensor_type.shape.dim)
    )  # fmt: skip


class Flow:
    """Where the values of a tensor go in a graph and in the bodies inside it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.producers: dict[str, onnx.NodeProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, tuple[AxisSize, ...]] = {}
        self.aliases: dict[str, list[str]] = defaultdict(list)  # across the borders of If, Loop and Scan
        self._read(graph)

    def follow(self, name: str) -> tuple[set[tuple[str, int]], list[tuple[AxisSize, int]]]:
        """Return the (operator, input) pairs that the values of a tensor reach, and their bounds.

        They stay below ``size - shift`` for every bound ``(size, shift)``.
        """
        uses: set[tuple[str, int]] = set()
        bounds: set[tuple[AxisSize, int]] = set()
        queue = [(name, 0)]  # a tensor, and how much it exceeds the input at most
        seen = set(queue)
        while queue:
            tensor, shift = queue.pop()
            onward = [(alias, shift) for alias in self.aliases[tensor]]
            for node, index in self.readers[tensor]:
                uses.add((node.op_type, index))
                limits = [(size, shift + extra) for size, extra in self._limits(node, index)]
                # A shift by the whole table serves negative indices only: Where(i < 0, i + size, i).
                bounds.update((size, extra) for size, extra in limits if isinstance(size, str) or extra < size)
                step = self._step(node, index)
                onward += [(output, shift + step) for output in node.output if step is not None]
            queue += [state for state in onward if state not in seen and len(seen) < 100_000]  # loops may count
            seen.update(onward)
        return uses, sorted(bounds, key=str)

    def compared(self, name: str) -> list[int]:
        """Return the constants that nodes compare the values of a tensor with; bodies see it under the same name."""
        nodes = [(node, index) for node, index in self.readers[name] if node.op_type == "Equal"]
        constants = [self._whole(node.input[1 - index]) for node, index in nodes]
        return sorted({int(value) for values in constants if values is not None for value in values.ravel()})

    def _read(self, graph: onnx.GraphProto) -> None:
        self.constants.update(constants_in(graph))
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                self.shapes[info.name] = declared_shape(info)
        for node in graph.node:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))
            self.producers.update(dict.fromkeys(node.output, node))

            for body in bodies(node):
                self._read(body)
                self._join(node, body)

    def _join(self, node: onnx.NodeProto, body: onnx.GraphProto) -> None:
        if node.op_type in traits.LOOPS:
            for outer, inner in zip(node.input, body.input, strict=False):
                self.aliases[outer].append(inner.name)
        handed_out = body.output[node.op_type in traits.COUNTED_LOOPS :]
        for inner, name in zip(handed_out, node.output, strict=False):
            self.aliases[inner.name].append(name)

    def _step(self, node: onnx.NodeProto, index: int) -> int | None:
        """Return what the node adds at most to the values it hands on, None where it makes something else of them."""
        if node.op_type in traits.SIGNS:
            signs, other = traits.SIGNS[node.op_type], self._whole(node.input[1 - index])
            if other is not None and signs[index] > 0:
                return int((signs[1 - index] * other).max())
            return 0 if min(signs) > 0 and self._switched(node.input[1 - index]) else None
        if node.op_type in traits.TIMES and self._switched(node.output[0]):
            return 0
        return 0 if index in traits.HANDED_ON.get(node.op_type, ()) else None

    def _switched(self, name: str) -> bool:
        """Tell whether a tensor is one side of ``a * switch + b * (1 - switch)``, which is Where in arithmetic."""
        node = self.producers.get(name)
        factors = [self.producers.get(factor) for factor in node.input] if node and node.op_type in traits.TIMES else []
        return any(factor is not None and factor.op_type in traits.CASTS for factor in factors)

    def _limits(self, node: onnx.NodeProto, index: int) -> list[tuple[AxisSize, int]]:
        """Return the bounds that an input of the node puts on the values given to it."""
        if node.op_type == "OneHot" and index == 0:
            depth = self._whole(node.input[1])
            return [] if depth is None else [(int(depth.max()), 0)]
        if (node.op_type, index) in traits.LENGTHS:  # from one to the whole length
            axis = integer(node, traits.LENGTHS[node.op_type, index])
            return [(size, -1) for size in self._sizes(node.input[0])[axis:][:1]] or [(1, -1)]
        tables, axis_name = traits.LOOKUPS.get(node.op_type, ({}, ""))
        if index not in tables or tables[index] >= len(node.input):
            return []
        sizes = self._sizes(node.input[tables[index]])
        axis = -1 if axis_name == "-1" else integer(node, axis_name)
        if node.op_type.endswith("ND"):  # indexes several axes at once
            return [(size, 0) for size in sizes[axis:]]
        return [(sizes[axis], 0)] if -len(sizes) <= axis < len(sizes) else []

    def _sizes(self, name: str) -> Sequence[AxisSize]:
        """Return the shape of a tensor where it is a constant, a stored weight or declared; else empty."""
        turns = []
        while name not in self.constants:
            node = self.producers.get(name)
            if node is None or node.op_type not in traits.REARRANGES - traits.REFOLDS:
                break
            turns += [node] if node.op_type in traits.TURNS else []
            name = node.input[0]
        sizes = list(self.constants[name].dims) if name in self.constants else list(self.shapes.get(name, ()))
        for node in reversed(turns) if sizes else ():
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), range(len(sizes))[::-1])
            sizes = [sizes[axis] for axis in order]
        return sizes

    def _whole(self, name: str) -> Array | None:
        """Return an integer constant with its data, None for anything else."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type not in {TensorProto.INT32, TensorProto.INT64}:
            return None
        try:
            value = numpy_helper.to_array(tensor)
        except (ValueError, OSError):  # the data is not here
            return None
        return value if value.size else None
