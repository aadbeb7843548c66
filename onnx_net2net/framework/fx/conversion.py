"""From a plain model to a module of PyTorch, by onnx2fx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx2fx.graph_builder import GraphBuilder
from onnx2fx.op_registry import get_handler
from torch import fx, nn

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.fx.operators import BatchNorm, registered
from onnx_net2net.framework.fx.parameters import Plain
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import scopes, sorted_indices

RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that attributes of a module cannot have."""

_SHOWN = 3


def convert(plain: Plain) -> fx.GraphModule:
    """Make a module whose parameters are what training changes; other constants are no part of its state dict.

    Raises:
        BadInputError: If there are operators that onnx2fx does not have, or uses of one that it does not take.
    """
    with registered():
        _check_operators(plain.model.proto)
        module = _Builder(plain.model).build()
    module.graph.eliminate_dead_code()
    readers = {node.target: node for node in module.graph.nodes if node.op == "get_attr"}
    for one in plain.trained:
        places = plain.places[one.name]
        values = [_taken(module, name) for name in places]
        read = [readers[name] for name in places if name in readers]
        for node in read:
            node.target = one.name
        _put(module, one.name, values[0], one.kind == "parameter" and bool(read))
    own = {one.name for one in plain.trained}
    for path, value in list(module.named_buffers()):
        if path not in own:
            holder, _, name = path.rpartition(".")
            part = module.get_submodule(holder)
            delattr(part, name)
            if part is not module or name in readers:  # a part is a body of the model
                part.register_buffer(name, value, persistent=False)
    _thaw(module, {one.name for one in plain.trained if one.kind == "statistic"})
    module.meta["onnx"] = {one.name: one.constant for one in plain.trained}
    module.recompile()
    module.graph.lint()
    return module


def _taken(module: nn.Module, name: str) -> torch.Tensor:
    """Take an attribute out of a module."""
    value = getattr(module, name)
    delattr(module, name)
    return value


def _put(module: nn.Module, path: str, value: torch.Tensor, is_parameter: bool) -> None:
    """Put a tensor where a path leads, through modules that are made where there are none."""
    *steps, last = path.split(".")
    for step in steps:
        if not hasattr(module, step):
            module.add_module(step, nn.Module())
        module = getattr(module, step)
    if is_parameter:
        module.register_parameter(last, nn.Parameter(value))
    else:
        module.register_buffer(last, value)


def _thaw(module: fx.GraphModule, statistics: set[str]) -> None:
    """Let BatchNormalizations follow their batches in training, as far as their statistics are theirs alone."""
    for node in module.graph.nodes:
        norm = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(norm, BatchNorm):
            own = [arg.target in statistics and len(arg.users) == 1 for arg in node.args[3:5]]
            norm.is_frozen = not own or not all(own)


def _check_operators(proto: onnx.ModelProto) -> None:
    """Refuse operators that there are none of, with the first node of each."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    missing: dict[str, str] = {}
    for scope in scopes(proto):
        for node in scope.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if get_handler(node.op_type, domain, opsets.get(node.domain, 1)) is None:
                kind = f"{domain}::{node.op_type}" if domain else node.op_type
                missing.setdefault(kind, node.name or node.output[0])
    if missing:
        found = ", ".join(f"{kind} (node {name!r})" for kind, name in list(missing.items())[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise BadInputError(f"the model cannot become a module: onnx2fx lacks {found}{more}")


class _Builder(GraphBuilder):  # type: ignore[misc]
    """A builder of onnx2fx that reads weights as this package does, and says which node it does not take."""

    def __init__(self, model: Model) -> None:
        self._source = model
        super().__init__(model.proto)

    def load_tensor(self, tensor: onnx.TensorProto) -> torch.Tensor:
        """Return a tensor of the model, of any type that torch has."""
        array = self._source.tensor(tensor).numpy()
        if array.dtype.name in ("int4", "uint4", "int2", "uint2"):  # torch computes with none of them
            array = array.astype("int8" if array.dtype.name[0] == "i" else "uint8")
        return state_dicts.torch_tensor(array)

    def get_opset_version(self, domain: str = "") -> int:
        """Return the version of a domain, which may be called by its long name."""
        versions: dict[str, int] = self._opset_versions
        return versions.get(domain, versions.get("ai.onnx", 1) if not domain else 1)

    def _convert_nodes(self) -> None:
        nodes = self.model.graph.node
        for index in sorted_indices(nodes):
            node = nodes[index]
            handler, domain, _ = self._resolve_handler(node)
            made = _named(node, lambda: handler(self, node))  # noqa: B023
            self._tag_operator_node(node, made, domain)
            self._register_outputs(node, made, domain)


def _named(node: onnx.NodeProto, make: Callable[[], Any]) -> Any:
    """Make something of a node.

    Raises:
        BadInputError: If that fails, with the node's name.
    """
    try:
        return make()
    except Exception as error:  # of onnx2fx, of its handlers
        name = node.name or node.output[0]
        raise BadInputError(
            f"cannot be made a module: onnx2fx does not take {node.op_type} {name!r}: {one_line(error)}"
        ) from error
