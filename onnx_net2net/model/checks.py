"""Parse a model file, and refuse models that cannot be worked with: other versions, broken text, broken structure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnx_net2net.errors import BadInputError
from onnx_net2net.model.protos import attribute_tensors, bodies, initializer_names, scopes, sorted_indices, value_names

OPSETS = range(7, min(onnx.defs.onnx_opset_version(), 26) + 1)
"""Versions of the default domain that are understood here and run in onnxruntime."""

NEWEST_IR = min(onnx.IR_VERSION, 13)

DEFAULT_DOMAIN = ("", "ai.onnx", None)
"""What ONNX's own domain is called; nodes of onnx-graphsurgeon may have None."""


def parse_model(path: Path) -> onnx.ModelProto:
    """Read a model file without its external data."""
    try:
        if path.is_dir():
            raise BadInputError(f"{path} is a folder, not a model file")
        size = path.stat().st_size
        if not size:
            raise BadInputError(f"{path} is empty")
        if size >= 1 << 31:
            raise BadInputError(f"{path} is no ONNX model: a file has at most 2 GiB, larger models need external data")
        return onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise BadInputError(f"{path} is no ONNX model, or a truncated one") from error


def parse_bytes(data: bytes) -> onnx.ModelProto:
    """Read a serialized model."""
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BadInputError("these bytes are no ONNX model, or a truncated one") from error


def check(proto: onnx.ModelProto) -> None:
    """Refuse a model that cannot be used.

    Raises:
        BadInputError: With the reason.
    """
    _check_versions(proto)
    everywhere = list(scopes(proto))
    _check_text(everywhere)
    _check_types(everywhere)
    check_structure(proto)


def _check_versions(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise BadInputError("it holds no graph, so it is no ONNX model")
    if not 0 < proto.ir_version <= NEWEST_IR:
        raise BadInputError(f"it has IR version {proto.ir_version}; supported are 1 to {NEWEST_IR}")
    versions = [opset.version for opset in proto.opset_import if opset.domain in DEFAULT_DOMAIN]
    if not versions:
        raise BadInputError("it imports no version of the default operator set")
    for version in versions:
        if version not in OPSETS:
            supported = f"{OPSETS.start} to {OPSETS.stop - 1}"
            raise BadInputError(f"it uses operator set {version}; supported are {supported}")


def _check_text(everywhere: Iterable[Any]) -> None:
    """Refuse names that are not UTF-8: protobuf gives these as bytes, which nothing expects."""
    texts: list[Any] = []
    for scope in everywhere:
        values = [*scope.input, *scope.output, *scope.value_info]
        texts += [scope.name, scope.doc_string, *initializer_names(scope), *value_names(values)]
        texts += [tensor.name for tensor in attribute_tensors(scope)]
        types = [value.type for value in values if hasattr(value, "type")]
        texts += [dim.dim_param for kind in types for dim in kind.tensor_type.shape.dim]
        for node in scope.node:
            texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
            texts += [attribute.name for attribute in node.attribute]
    if not all(isinstance(text, str) for text in texts):
        raise BadInputError("it has names that are not UTF-8 text")


def _check_types(everywhere: Iterable[Any]) -> None:
    """Refuse element types that there are not."""
    known = frozenset(onnx.TensorProto.DataType.values())
    for scope in everywhere:
        tensors = [(tensor.name, tensor.data_type) for tensor in getattr(scope, "initializer", ())]
        values = [value for value in (*scope.input, *scope.output, *scope.value_info) if hasattr(value, "type")]
        for name, kind in (*tensors, *((value.name, value.type.tensor_type.elem_type) for value in values)):
            if kind not in known:
                raise BadInputError(f"{name} has the element type {kind}, which does not exist")
        for name, kind in tensors:
            if not kind:
                raise BadInputError(f"initializer {name} has no element type")


def check_structure(proto: onnx.ModelProto) -> None:
    """Check, in linear time, that every tensor is produced once and before it is used."""
    if not proto.graph.output:
        raise BadInputError("its graph has no outputs")
    for scope in (proto.graph, *proto.functions):
        _check_scope(scope, ())
    for scope in scopes(proto):
        for sparse in getattr(scope, "sparse_initializer", ()):
            if sparse.values.external_data or sparse.indices.external_data:
                raise BadInputError(f"sparse tensor {sparse.values.name} is in an external file, not supported")


def _check_scope(scope: Any, outer: tuple[set[str], ...]) -> None:
    """Check a graph or a function; `outer` are the names that the enclosing graphs define."""
    own = set(inputs := value_names(scope.input))
    if len(own) < len(inputs):
        raise BadInputError("two of its inputs have the same name")
    initializers = initializer_names(scope)
    if len(set(initializers)) < len(initializers):
        raise BadInputError("two of its initializers have the same name")
    own.update(initializers)
    for node in scope.node:
        for name in filter(None, node.input):
            if name not in own and not any(name in names for names in outer):
                raise BadInputError(_why_missing(scope, node, name))
        for body in bodies(node):
            _check_scope(body, (*outer, own))
        for name in filter(None, node.output):
            if name in own or any(name in names for names in outer):
                raise BadInputError(f"tensor {name} is produced twice")
            own.add(name)
    for name in value_names(scope.output):
        if name not in own and not any(name in names for names in outer):
            raise BadInputError(f"output {name} is not produced by any node")


def _why_missing(scope: Any, node: onnx.NodeProto, name: str) -> str:
    needs = f"node {node.name or node.op_type} needs tensor {name}"
    if any(name in other.output for other in scope.node):
        sorted_indices(scope.node)  # says so if there is a cycle
        return f"{needs} before it is produced: the nodes are not sorted"
    return f"{needs}, which nothing provides"
