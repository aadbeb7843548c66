"""Concrete sizes: the shape of every tensor, and the value of every small tensor that follows from shapes.

Dynamic axes are bound to distinct probe sizes and the graph is walked once, node by node: a node whose inputs
are all known and small is evaluated by `onnx.reference`, any other is typed by the operator's own shape
inference in `onnx`, with the known values as data. No weight is read. Where the inference of an operator fails,
its outputs and what follows from them alone stay unknown, which freezes them later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import count, islice
from math import isqrt, prod
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference

from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.model.protos import integer
from onnx_net2net.rules import traits
from onnx_net2net.rules.typing import SMALL_TENSOR, STEPS, TypeFunction, UntypableError, is_large, type_functions

PROBES = (
    (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41),  # coprime: no product of two dynamic axes looks like another
    (3, 224, 192, 160, 256, 288, 320, 352, 384, 416, 448, 480),  # images whose pyramids meet again
    (2, 64, 96, 128, 32, 48, 80, 112, 144, 176, 208, 240),
    (1,) * 12,
)
"""Sizes tried for the dynamic axes, in order; the first set that the whole graph accepts is used."""

_LONGEST = 1 << 28
"""Units that an axis may have; where one has more the shape is taken as not known."""

_EVALUATED = [np.dtype(t) for t in (np.bool_, np.int32, np.int64, np.float32, np.float64)]
"""Types on which the reference operators keep to the specification."""


Shape = tuple[int, ...]


@dataclass
class Sizes:
    """What is known of each tensor of a graph under one binding of its dynamic axes.

    Attributes:
        types: Element type and shape, as protobuf types.
        values: Values of small tensors that follow from constants and shapes.
        constant: Names of the values that follow from constants alone, whatever the dynamic sizes.
        binding: Probe size of each dynamic axis.
        failures: For each tensor that could not be typed, why.
        refused: Those of them whose own operator says why, in words for people.
    """

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    binding: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    _shapes: dict[int, tuple[Shape | None, onnx.TypeProto]] = field(default_factory=dict, repr=False, compare=False)

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a tensor, or None where it is not known or not a tensor."""
        proto = self.types.get(name)
        if proto is None:
            return None
        if (known := self._shapes.get(id(proto))) is None:
            known = self._shapes[id(proto)] = _shape_of(proto), proto  # kept, so that its id stays its own
        return known[0]

    def dtype(self, name: str) -> int:
        """Return the element type of a tensor (onnx.TensorProto.DataType), 0 where it is not known."""
        proto = self.types.get(name)
        return int(proto.tensor_type.elem_type) if proto is not None else 0


def _shape_of(proto: onnx.TypeProto) -> Shape | None:
    if not proto.tensor_type.HasField("shape"):
        return None
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in proto.tensor_type.shape.dim)
    return shape if not shape or (min(shape) >= 0 and max(shape) <= _LONGEST) else None


@lru_cache(maxsize=1 << 12)
def _tensor_type(dtype: int, shape: Shape) -> onnx.TypeProto:
    """Return the type of a tensor: one object for many tensors, never to be changed."""
    return helper.make_tensor_type_proto(dtype, shape)


def infer_sizes(model: onnx.ModelProto) -> Sizes:
    """Infer the sizes of a (weightless) model at the first probe binding that fits it.

    Args:
        model: Model whose large initializers may lack their bytes.

    Returns:
        The sizes under the binding with the fewest nodes that could not be typed.
    """
    best: Sizes | None = None
    for probe in PROBES:
        sizes = infer_at(model, bind_axes(model.graph, probe))
        if best is None or len(sizes.failures) < len(best.failures):
            best = sizes
        if not sizes.failures or not sizes.binding:
            break
    assert best is not None
    return best


def bind_axes(graph: onnx.GraphProto, probe: Iterable[int]) -> dict[str, int]:
    """Give each dynamic axis of the graph inputs a size; axes of one name share it.

    Returns:
        Sizes by dim_param, or by "input:axis" where the axis has no name; how often a loop runs is dynamic too.
    """
    names = (key for value in graph.input for key, _ in _dynamic(value))
    fresh = iter(probe)
    loops = (node for node in graph.node if node.op_type == "LoopStart")
    binding = {f"steps of {node.name or node.output[-1]}": STEPS for node in loops}
    last = 1
    for name in names:
        if name not in binding:
            last = next(fresh, last + 2)
            binding[name] = last
    return binding


def _dynamic(value: onnx.ValueInfoProto) -> Iterator[tuple[str, Any]]:
    for position, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value") or dim.dim_value <= 0:
            yield dim.dim_param or f"{value.name}:{position}", dim


def infer_at(model: onnx.ModelProto, binding: Mapping[str, int]) -> Sizes:
    """Infer the sizes of a model under a given binding of its dynamic axes."""
    sizes = Sizes(binding=dict(binding))
    for value in model.graph.input:
        typed = onnx.ValueInfoProto()
        typed.CopyFrom(value)
        for name, dim in _dynamic(typed):
            dim.dim_value = binding[name]
        sizes.types[value.name] = typed.type
    for tensor in model.graph.initializer:
        note_constant(sizes, tensor.name, tensor)
    versions = opsets_of(model)
    if model.graph.value_info:
        unknown = {o for n in model.graph.node if not _is_known(n, versions) for o in n.output}
        sizes.types.update({v.name: v.type for v in model.graph.value_info if v.name in unknown})
    for sparse in model.graph.sparse_initializer:
        sizes.types[sparse.values.name] = helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
    walk = _Walk(sizes, versions, model.ir_version)
    for node in model.graph.node:
        walk.visit(node)
    return sizes


def reevaluate(model: onnx.ModelProto, old: Sizes, types: dict[str, onnx.TypeProto]) -> Sizes:
    """Compute the values that follow from shapes again, for other shapes.

    Args:
        model: The model.
        old: Its sizes; only what has a value there is computed.
        types: The types of all tensors, with the new shapes.
    """
    new = Sizes(types=types, binding=old.binding)
    computed = {name for node in model.graph.node for name in node.output if name in old.values}
    new.values = {name: value for name, value in old.values.items() if name not in computed}
    versions = opsets_of(model)
    for node in model.graph.node:
        if any(name in computed for name in node.output):
            try:
                _evaluate(node, new, versions)
            except Exception:  # arithmetic on weights, whose values are not known here
                continue
    return new


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the opset version that the model imports for each domain; ai.onnx is ""."""
    versions = {entry.domain or "": entry.version for entry in model.opset_import}
    versions.setdefault("", versions.get("ai.onnx", 1))
    return versions


def note_constant(sizes: Sizes, name: str, tensor: onnx.TensorProto) -> None:
    """Record the type of a constant, and its value when it is small and its bytes are here."""
    sizes.types[name] = _tensor_type(tensor.data_type, tuple(tensor.dims))
    inline = tensor.data_location != onnx.TensorProto.EXTERNAL
    if inline and prod(tensor.dims) <= SMALL_TENSOR and tensor.data_type != onnx.TensorProto.STRING:
        sizes.values[name] = numpy_helper.to_array(tensor)
        sizes.constant.add(name)


class _Walk:
    """A walk over sorted nodes that types what they make, those that differ in nothing but names together."""

    def __init__(self, sizes: Sizes, versions: dict[str, int], ir_version: int) -> None:
        self._sizes, self._versions, self._ir_version = sizes, versions, ir_version
        self._imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        self._alike: dict[tuple[Any, ...], tuple[list[onnx.TypeProto], list[onnx.TypeProto | None]]] = {}

    def visit(self, node: onnx.NodeProto) -> None:
        """Type the outputs of a node."""
        sizes = self._sizes
        try:
            if _evaluate(node, sizes, self._versions):
                return
        except Exception:  # the reference operators do not cover every version and type; typing needs no values
            _forget(node, sizes)
        try:
            self._type(node)
        except defs.SchemaError:  # an operator that only the runtime knows: what the file says of its outputs
            unknown = [name for name in filter(None, node.output) if sizes.shape(name) is None]
            sizes.failures.update(dict.fromkeys(unknown, f"{node.op_type} has no schema"))
        except Exception as error:  # any operator's inference may reject its inputs, each in its own way
            reason = str(error).strip().splitlines() or [type(error).__name__]
            sizes.failures.update(dict.fromkeys(filter(None, node.output), reason[0]))
            if isinstance(error, UntypableError):
                sizes.refused.update(filter(None, node.output))

    def _type(self, node: onnx.NodeProto) -> None:
        sizes, domain = self._sizes, "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) in type_functions:
            _type_by_function(node, sizes, type_functions[domain, node.op_type])
            return
        by_data = node.op_type in traits.BY_DATA and not domain
        if not by_data and self._type_alike(node, domain):
            return
        inferred = self._infer(node, domain, sizes.values)
        for place, name in enumerate(node.output):
            if name in inferred:
                sizes.types[name] = inferred[name]
                if by_data:
                    _bind_lengths(node, place, sizes)
        for name in node.output:
            if name and inferred.get(name, onnx.TypeProto()).HasField("tensor_type") and sizes.shape(name) is None:
                raise ValueError("has an output whose shape depends on data, or is beyond all bounds")

    def _type_alike(self, node: onnx.NodeProto, domain: str) -> bool:
        """Type the outputs by types and by lists of sizes alone; tell whether these say all."""
        sizes, outputs = self._sizes, list(filter(None, node.output))
        types = [sizes.types.get(name) for name in node.input]
        lists = {}
        for name in node.input:
            value = sizes.values.get(name)
            if value is not None and value.ndim < 2 and value.dtype == np.int64:
                lists[name] = value
        key = (
            domain,
            node.op_type,
            tuple(map(id, types)),
            tuple([lists[name].tobytes() if name in lists else None for name in node.input]) if lists else (),
            tuple(map(bool, node.output)),
            tuple([attribute.SerializeToString() for attribute in node.attribute]),
        )
        if key not in self._alike:
            try:
                inferred = self._infer(node, domain, lists)
            except Exception:  # with all values there is another one, or none
                return False
            shapes = [_shape_of(inferred[name]) if name in inferred else None for name in outputs]
            if None in shapes:
                return False
            found = [_tensor_type(inferred[n].tensor_type.elem_type, s) for n, s in zip(outputs, shapes, strict=True)]
            self._alike[key] = found, types  # which are kept, so that their ids stay theirs
        sizes.types.update(zip(outputs, self._alike[key][0], strict=True))
        return True

    def _infer(self, node: onnx.NodeProto, domain: str, values: Mapping[str, np.ndarray]) -> dict[str, onnx.TypeProto]:
        """Return the types of outputs by the schema of the operator, as far as it tells them."""
        sizes = self._sizes
        schema = defs.get_schema(node.op_type, self._versions.get(domain, 1), domain)
        known = {name: sizes.types[name] for name in node.input if name in sizes.types}
        if any(name and name not in known for name in node.input):
            raise ValueError("follows a tensor of unknown shape")
        if node.op_type in traits.SPLITS and not domain:
            known[node.input[0]] = _as_cut(node, sizes)
        arrays = {name: np.asarray(values[name], order="C") for name in node.input if name in values}
        data = {name: numpy_helper.from_array(value, name) for name, value in arrays.items()}
        types: dict[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
            schema, node, known, data, opset_imports=self._imports, ir_version=self._ir_version
        )
        return types


def _forget(node: onnx.NodeProto, sizes: Sizes) -> None:
    for name in node.output:
        sizes.values.pop(name, None)
        sizes.types.pop(name, None)


def _evaluate(node: onnx.NodeProto, sizes: Sizes, versions: dict[str, int]) -> bool:
    """Compute the outputs of a node whose inputs are known; tell whether that was done."""
    if node.domain not in DEFAULT_DOMAIN:
        return False
    if node.op_type in traits.CONSTANTS:
        return _constant(node, sizes)
    if node.op_type in traits.SHAPES:
        return _measure(node, sizes)
    inputs = [sizes.values.get(name) if name else None for name in node.input]
    if node.op_type in traits.CASTS and len(inputs) > 1 and inputs[0] is not None:  # only the type of a second is read
        inputs[1] = np.zeros(1, helper.tensor_dtype_to_np_dtype(sizes.dtype(node.input[1])))
    if not _is_computed(node, inputs):
        return False
    operator = _operator(node.op_type, versions[""])
    with np.errstate(all="ignore"):
        results = operator(node, {"log": _silent, "opsets": versions, "verbose": 0, "new_ops": None}).run(*inputs)
    read = node.input[:1] if node.op_type in traits.CASTS else node.input
    fixed = all(name in sizes.constant for name in read if name)
    for name, result in zip(node.output, results, strict=False):
        result = np.asarray(result)
        if name and result.size <= SMALL_TENSOR:
            _set_value(sizes, name, result)
            if fixed:
                sizes.constant.add(name)
        elif name:
            sizes.types[name] = _tensor_type(helper.np_dtype_to_tensor_dtype(result.dtype), result.shape)
    return True


def _measure(node: onnx.NodeProto, sizes: Sizes) -> bool:
    """Set the value of a Shape or Size of a tensor whose shape is known; tell whether that was done."""
    shape = sizes.shape(node.input[0])
    if shape is None:
        return False
    attrs = {a.name: a.i for a in node.attribute}
    value = shape[attrs.get("start", 0) : attrs.get("end", len(shape))] if node.op_type == "Shape" else None
    _set_value(sizes, node.output[0], np.array(np.prod(shape, initial=1) if value is None else value, np.int64))
    return True


def _is_computed(node: onnx.NodeProto, inputs: list[np.ndarray | None]) -> bool:
    """Tell whether all that a node reads is known, and what it makes is a value of use, not too large."""
    if any(value is None and name for name, value in zip(node.input, inputs, strict=True)):  # as nearly always
        return False
    if not node.input or node.op_type in traits.RANDOM | traits.SIZED or any(a.type == a.GRAPH for a in node.attribute):
        return False
    if any(value is not None and value.dtype not in _EVALUATED for value in inputs):
        return False
    return not is_large(node.op_type, inputs)


def _silent(*_: Any) -> None:
    """Take the messages of the reference operators."""


def _is_known(node: onnx.NodeProto, versions: Mapping[str, int]) -> bool:
    """Tell whether the outputs of a node can be typed without what the file says of them."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return (domain, node.op_type) in type_functions or defs.has(node.op_type, versions.get(domain, 1), domain)


@cache
def _operator(kind: str, version: int) -> Any:
    from onnx.reference.ops import load_op  # all operators at once, which takes a tenth of a second

    return load_op("", kind, version)


def _set_value(sizes: Sizes, name: str, value: np.ndarray) -> None:
    sizes.values[name] = value
    sizes.types[name] = _tensor_type(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _constant(node: onnx.NodeProto, sizes: Sizes) -> bool:
    attribute = node.attribute[0]
    if attribute.name == "value":
        note_constant(sizes, node.output[0], attribute.t)
        return True
    dtypes = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in dtypes:
        return False
    _set_value(sizes, node.output[0], np.array(helper.get_attribute_value(attribute), dtypes[attribute.name]))
    sizes.constant.add(node.output[0])
    return True


def _bind_lengths(node: onnx.NodeProto, place: int, sizes: Sizes) -> None:
    """Give the axes of an output whose lengths depend on data a size of their own, the same for the same inputs."""
    parts = (str(place),) if node.op_type in traits.SPLITS else ()  # the outputs of the others are equally long
    shape = sizes.shape(node.input[0])
    if (
        node.op_type in traits.SPLITS
        and shape is not None
        and not sizes.types[node.output[place]].tensor_type.HasField("shape")
    ):
        axis = integer(node, "axis") % len(shape)
        parts_ = [None if position == axis else size for position, size in enumerate(shape)]
        sizes.types[node.output[place]] = helper.make_tensor_type_proto(sizes.dtype(node.input[0]), parts_)
    key = " ".join((f"length of {node.op_type}", *node.input, *parts))
    for dim in sizes.types[node.output[place]].tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            dim.dim_value = sizes.binding.setdefault(
                key, _length(sum(k.startswith("length of ") for k in sizes.binding))
            )


def _as_cut(node: onnx.NodeProto, sizes: Sizes) -> onnx.TypeProto:
    """Return the type of what is split: a length that depends on data is that of the parts, where they are known."""
    kind = onnx.TypeProto()
    kind.CopyFrom(sizes.types[node.input[0]])
    lists = {a.name: a for a in node.attribute}
    parts = (
        sizes.values.get(node.input[1]) if len(node.input) > 1 else lists["split"].ints if "split" in lists else None
    )
    dims, axis = kind.tensor_type.shape.dim, lists["axis"].i if "axis" in lists else 0
    lengths = {size for key, size in sizes.binding.items() if key.startswith("length of ")}
    if parts is not None and dims[axis].dim_value in lengths:
        dims[axis].dim_value = int(sum(parts))
    return kind


def _length(number: int) -> int:
    """Return a prime for a length that depends on data: it looks like no dynamic axis, and like no product of some."""
    return next(islice((n for n in count(47, 2) if all(n % k for k in range(3, isqrt(n) + 1, 2))), number, None))


def _type_by_function(node: onnx.NodeProto, sizes: Sizes, function: TypeFunction) -> None:
    attrs = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    attrs = {name: value.decode() if isinstance(value, bytes) else value for name, value in attrs.items()}
    shapes = [sizes.shape(name) for name in node.input]
    types = [None if s is None else (sizes.dtype(n), s) for n, s in zip(node.input, shapes, strict=True)]
    if any(known is None and name for known, name in zip(types, node.input, strict=True)):
        raise ValueError("follows a tensor of unknown shape")
    results = function(types, attrs, [sizes.values.get(name) for name in node.input])
    for name, (dtype, shape) in zip(node.output, results, strict=False):
        sizes.types[name] = _tensor_type(dtype, tuple(shape))
