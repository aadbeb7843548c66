"""Edit a model with onnx-graphsurgeon; weights are neither read nor copied for that."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.rows import InMemory, Source
from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.graph.export import merge, merged_node, portable
from onnx_net2net.model.checks import DEFAULT_DOMAIN, check_structure
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import all_tensors, captured, initializer_names, refill, scopes, unused, value_names
from onnx_net2net.model.tensors import INLINE_BYTES, Weight, data_of, detach, inherit, make_stub, stub_key
from onnx_net2net.rules import traits

Node, Tensor, Variable, Constant, Topology = gs.Node, gs.Tensor, gs.Variable, gs.Constant, gs.Graph
"""What a graph consists of: see onnx-graphsurgeon."""

_ROW = 16
"""So many Identities in a row are read one after another."""

_NONE: frozenset[str] = frozenset()

Place = tuple[int, int]
"""An input of a node: the number of the node, and which input."""


def _shorten(graph: gs.Graph) -> bool:
    """Let Identities in a long row read what the row names, so that nobody has to walk along all of it.

    Returns:
        Whether there are such rows.
    """
    is_long = False
    rows: dict[int, tuple[gs.Tensor, int]] = {}  # what a tensor names, and how many Identities lie between
    for node in graph.nodes:
        if node.op in traits.RENAMES and node.domain in DEFAULT_DOMAIN and node.inputs and node.outputs:
            named, length = rows.get(id(node.inputs[0]), (node.inputs[0], 0))
            if length >= _ROW:
                node.inputs[0], length, is_long = named, 0, True
            rows[id(node.outputs[0])] = named, length + 1
    return is_long


class Graph:
    """An editable copy of a model's topology.

    Edit `graph` with onnx-graphsurgeon, but take new constants from `constant`, `lazy_constant` and `replace` and
    read old ones by `read`: a constant's own `values` would fail on a stub. Node bodies (see
    `graph.flatten`), functions and attributes that onnx-graphsurgeon cannot carry are not shown in `graph` and
    are kept as they are.
    Do not call `graph.cleanup()`, which does not see what bodies capture, nor `graph.copy()`, which forgets what each
    node was in the model (`copy` here does not). Nodes need not be kept sorted.

    Attributes:
        graph: The topology.
    """

    graph: gs.Graph

    def __init__(self, model: Model) -> None:
        self._model = model
        self._weights = dict(model.weights)
        self.graph = _imported(model)
        self._nodes = list(self.graph.nodes)  # keeps the nodes alive, so that their ids stay theirs
        self._origin = {id(node): index for index, node in enumerate(self._nodes)}
        self._is_shortened = _shorten(self.graph)
        self._unedited: gs.Graph | None = None

    def copy(self) -> Graph:
        """Return the same graph to be edited; this one must then stay as it is."""
        made = Graph(self._model)
        made.numbers, made.kept = {id(node): number for number, node in enumerate(made.nodes)}, self.kept
        made._unedited = None if self._is_shortened else self.graph
        return made

    @cached_property
    def _names(self) -> dict[str, int]:
        return dict.fromkeys(_all_names(self._model.proto), 0)

    @cached_property
    def _before(self) -> onnx.GraphProto:
        """What onnx-graphsurgeon makes of the model as it is: few graphs are finished, so it is made then."""
        return _exported(_imported(self._model) if self._unedited is None else self._unedited)

    @cached_property
    def _captured(self) -> dict[int, frozenset[str]]:
        """What the bodies of nodes use of the tensors of enclosing graphs, by the node's number, if anything."""
        numbered = enumerate(self._model.proto.graph.node)
        return {number: names for number, node in numbered if (names := frozenset(captured([node])))}

    @property
    def nodes(self) -> list[gs.Node]:
        """The nodes, in order."""
        nodes: list[gs.Node] = self.graph.nodes
        return nodes

    @property
    def inputs(self) -> list[gs.Tensor]:
        """The inputs of the model."""
        inputs: list[gs.Tensor] = self.graph.inputs
        return inputs

    @property
    def outputs(self) -> list[gs.Tensor]:
        """The outputs of the model."""
        outputs: list[gs.Tensor] = self.graph.outputs
        return outputs

    def tensors(self) -> dict[str, gs.Tensor]:
        """Return all tensors, by name."""
        return dict(self.graph.tensors())

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The number of each node, by its id; as long as the graph is not edited."""
        return {id(node): number for number, node in enumerate(self.nodes)}

    @cached_property
    def kept(self) -> frozenset[str]:
        """The names of tensors that are read by more than nodes: outputs, and what bodies capture."""
        outputs = frozenset(tensor.name for tensor in self.graph.outputs)
        return outputs.union(*map(self.captured, self.nodes)) if self._captured else outputs

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """Return the node that alone reads a tensor, if there is one."""
        readers = {id(node): node for node in tensor.outputs}
        return next(iter(readers.values())) if len(readers) == 1 and tensor.name not in self.kept else None

    def captured(self, node: gs.Node) -> frozenset[str]:
        """Return the names of the tensors of enclosing graphs that the node's bodies use (none for most nodes)."""
        return self._captured.get(self._origin.get(id(node), -1), _NONE) if self._captured else _NONE

    def read(self, constant: gs.Constant) -> Array:
        """Return the values of a constant of the graph or of a node's attribute.

        Returns:
            A read-only view where possible; types that numpy lacks come as those of ml_dtypes.

        Raises:
            BadInputError: If the constant is sparse.
        """
        return self.reader(constant)()

    def reader(self, constant: gs.Constant) -> Source:
        """Return a function that reads the values that the constant has now, even if it is replaced later."""
        values = constant._values  # `values` would try to load a stub
        if isinstance(values, SparseValues):
            raise BadInputError(f"tensor {constant.name} is sparse, which is not supported")
        if not isinstance(values, LazyValues):
            return InMemory(np.asarray(values))
        return data_of(values.tensor, self._weights)

    def unique_name(self, base: str) -> str:
        """Return `base`, or `base` with a number, such that nothing in the model has this name; it is now taken."""
        return unused(base, self._names)

    def constant(self, name: str, values: Array) -> gs.Constant:
        """Make a constant, of any type that ONNX shares with numpy or ml_dtypes but text; `name` is made unique."""
        if values.nbytes > INLINE_BYTES:
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            return self.lazy_constant(name, kind, values.shape, InMemory(values))
        proto = numpy_helper.from_array(values, self.unique_name(name))
        return gs.Constant(proto.name, LazyValues(proto))

    def lazy_constant(
        self,
        name: str,
        dtype: int,
        shape: Sequence[int],
        compute: Callable[[], Array],
        like: gs.Constant | None = None,
    ) -> gs.Constant:
        """Make a constant whose values are computed each time the model is saved or they are read.

        Args:
            name: Its name, made unique.
            dtype: A `TensorProto.DataType`.
            shape: The shape of the values.
            compute: Returns the values, of this type (as in ml_dtypes, where numpy has none) and shape.
            like: A constant whose documentation and metadata the new one inherits.
        """
        name = self.unique_name(name)
        return gs.Constant(name, self._lazy_values(name, dtype, shape, compute, like))

    def copied(self, constant: gs.Constant, name: str, zero: bool = False) -> gs.Constant:
        """Make a constant with the values of another, or with zeros of its type; see `lazy_constant`."""
        read = self.reader(constant)

        def zeros() -> Array:
            return np.zeros_like(read())

        return self.lazy_constant(name, self.type_of(constant), constant.shape, zeros if zero else read, constant)

    def type_of(self, constant: gs.Constant) -> int:
        """Return the `TensorProto.DataType` of a constant."""
        return int(_tensor_proto(constant).data_type)

    def replace(
        self,
        constant: gs.Constant,
        shape: Sequence[int],
        compute: Callable[[], Array],
        dtype: int | None = None,
    ) -> None:
        """Give a constant new values in place: its name and everything that uses it stay; see `lazy_constant`."""
        kind = self.type_of(constant) if dtype is None else dtype
        constant.values = self._lazy_values(constant.name, kind, shape, compute, constant)

    def finish(self, metadata: Mapping[str, str] | None = None, stale: Collection[str] | Literal["all"] = ()) -> Model:
        """Return the edited model, with all else as it was; this may be edited further.

        Args:
            metadata: Entries to set in the model's `metadata_props`.
            stale: Tensors whose recorded types (`value_info`) no longer hold and are dropped, or "all". Those of
                graph inputs and outputs are kept: change the shapes of these in `graph`.

        Raises:
            BadInputError: If the edited graph is not a valid one.
        """
        self.graph.tensors(check_duplicates=True)
        after = _exported(self.graph)
        proto = copy.deepcopy(self._model.proto)
        nodes = [self._finished_node(node, new) for node, new in zip(self.graph.nodes, after.node, strict=True)]
        merge(proto, self._before, after, nodes)
        for scope in scopes(proto) if stale else ():
            refill(scope.value_info, [v for v in scope.value_info if stale != "all" and v.name not in stale])
        if metadata:
            old = {entry.key: entry.value for entry in proto.metadata_props}
            onnx.helper.set_model_props(proto, {**old, **metadata})
        check_structure(proto)
        weights = dict(self._weights)
        detach(proto, weights)
        alive = {stub_key(tensor) for tensor in all_tensors(proto)}
        weights = {key: weight for key, weight in weights.items() if key in alive}
        return dataclasses.replace(self._model, proto=proto, weights=weights, path=None)

    def _finished_node(self, node: gs.Node, exported: onnx.NodeProto) -> onnx.NodeProto:
        index = self._origin.get(id(node))
        if index is None:
            return exported
        return merged_node(self._model.proto.graph.node[index], self._before.node[index], exported)

    def _lazy_values(
        self, name: str, dtype: int, shape: Sequence[int], compute: Callable[[], Array], like: gs.Constant | None
    ) -> LazyValues:
        dims = tuple(int(size) for size in shape)
        proto = onnx.TensorProto(name=name, data_type=dtype, dims=dims)
        make_stub(proto, Weight(dtype, dims, name, compute), self._weights)
        if like is not None:
            inherit(proto, _tensor_proto(like))
        return LazyValues(proto)


def _imported(model: Model) -> gs.Graph:
    """Return what onnx-graphsurgeon makes of a model.

    Raises:
        BadInputError: It cannot take it.
    """
    with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
        try:
            graph = gs.import_onnx(portable(model.proto))
        except Exception as error:  # whatever it stumbles over in a model that it does not expect
            raise BadInputError(f"onnx-graphsurgeon cannot take the model: {one_line(error)}") from error
    for node in graph.nodes:  # exporters leave the values of Constant nodes without a name
        if node.op in traits.CONSTANTS and isinstance(node.attrs.get("value"), gs.Constant):
            node.attrs["value"].name = node.outputs[0].name
    return graph


def _exported(graph: gs.Graph) -> onnx.GraphProto:
    seen: set[int] = set()
    for constant in _constants(graph):
        constant.data_location = None  # of the stub; would be written next to values set since
        values = constant._values
        if isinstance(values, LazyValues) and not isinstance(values, SparseValues):
            if id(values.tensor) in seen:  # copies of a constant share it, and export writes their names into it
                constant.values = LazyValues(copy.deepcopy(values.tensor))
            seen.add(id(values.tensor))
    with G_LOGGER.suppress():
        return gs.export_onnx(graph, do_type_check=False).graph


def _all_names(proto: onnx.ModelProto) -> set[str]:
    names: set[str] = set()
    for scope in scopes(proto):
        names.update(initializer_names(scope), value_names((*scope.input, *scope.output, *scope.value_info)))
        for node in scope.node:
            names.update([node.name], node.input, node.output)
    return names


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield the constants that nodes use and those in their attributes."""
    attributes = (value for node in graph.nodes for value in node.attrs.values())
    for value in itertools.chain(graph.tensors().values(), attributes):
        if isinstance(value, gs.Constant):
            yield value


def _tensor_proto(constant: gs.Constant) -> onnx.TensorProto:
    values = constant._values  # `values` would try to load a stub
    return values.tensor if isinstance(values, LazyValues) else numpy_helper.from_array(values)


def dtype_of(constant: gs.Constant) -> np.dtype[Any]:
    """Return the type of a constant's values, which are not read."""
    values = constant._values
    code = values.tensor.data_type if hasattr(values, "tensor") else None
    dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code) if code is not None else values.dtype)
    return dtype
