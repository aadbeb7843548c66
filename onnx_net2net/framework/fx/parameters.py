"""Which constants of a model are trained, and under which names a module has them.

A parameter is a float constant that is a weight (see `onnx_net2net.analysis.weights`). Means and variances of
BatchNormalizations are measured, not trained. Masks, sizes, epsilons and integers are neither.
"""

from __future__ import annotations

import dataclasses
import itertools
import keyword
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx

from onnx_net2net.algebra.floats import is_float
from onnx_net2net.analysis.groups import analysing
from onnx_net2net.analysis.weights import weight_uses
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.model.functions import inlined
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import all_tensors, bodies, initializer_names, refill, scopes, unused, value_names
from onnx_net2net.model.tensors import numpy_type
from onnx_net2net.rules import traits

Kind = Literal["parameter", "statistic"]


@dataclass(frozen=True)
class Trained:
    """A constant that training changes.

    Attributes:
        name: What a module's state dict calls it.
        constant: What the model calls it.
        tensor: Its number among `all_tensors` of the model.
        kind: Whether it is trained or measured.
        shape: Its shape.
        dtype: Its type, as of numpy or ml_dtypes.
    """

    name: str
    constant: str
    tensor: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Plain:
    """A model without functions, in which every value has its own name, fit for a module's attribute.

    Attributes:
        model: That model; float constants of bodies are initializers of its main graph.
        trained: The constants that training changes.
        places: The names in `model` of each of these; several where a function that holds it is called twice.
    """

    model: Model
    trained: tuple[Trained, ...]
    places: Mapping[str, tuple[str, ...]]


def trained_of(model: Model, reserved: Iterable[str] = ()) -> Plain:
    """Find the constants of a model that training changes; no weight is read.

    Args:
        model: The model.
        reserved: Names that no value of the plain model may have.

    Returns:
        A plain form of the model, with the constants. Their names are always the same for the same file.

    Raises:
        BadInputError: If the model cannot be analysed.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for number, tensor in enumerate(all_tensors(proto)):
        tensor.doc_string = str(number)  # stays with it, wherever it is moved
    proto = inlined(proto)
    values = _renamed(proto, set(reserved))
    _hoist(proto)
    plain = dataclasses.replace(model, proto=proto, path=None)
    kinds = _kinds(plain)
    numbers = {tensor.name: int(tensor.doc_string) for tensor in proto.graph.initializer}
    places: dict[int, list[str]] = {}
    for name, number in numbers.items():
        if name in kinds:
            places.setdefault(number, []).append(name)
    tensors = list(all_tensors(model.proto))
    names = parameter_names([values[found[0]] for found in places.values()])
    trained: list[Trained] = []
    for (number, found), name in zip(places.items(), names, strict=True):
        tensor = tensors[number]
        kind: Kind = "parameter" if any(kinds[one] == "parameter" for one in found) else "statistic"
        dtype = numpy_type(tensor.data_type)
        trained.append(Trained(name, values[found[0]], number, kind, tuple(tensor.dims), dtype))
    by_name = {one.name: tuple(places[one.tensor]) for one in trained}
    return Plain(plain, tuple(trained), by_name)


def _kinds(plain: Model) -> dict[str, Kind]:
    """Return what the float constants of a plain model are that training changes."""
    with analysing(plain) as (_, analysis):
        weights = {use.constant.name for use in weight_uses(analysis)}
    floats = {t.name for t in plain.proto.graph.initializer if _is_float(t) and not set(t.dims) & {0}}
    reads: dict[str, set[tuple[str, int]]] = {}
    for scope in scopes(plain.proto):
        for node in scope.node:
            for index, name in enumerate(node.input):
                reads.setdefault(name, set()).add((node.op_type, index))
    weights |= {name for name, places in reads.items() if places & traits.LEARNT}
    measured = {name for name, places in reads.items() if places <= traits.STATISTICS}
    limits = {name for name, places in reads.items() if places & traits.LIMITS}
    kinds: dict[str, Kind] = dict.fromkeys(floats & (weights - limits), "parameter")
    return kinds | dict.fromkeys(floats & measured, "statistic")


def _is_float(tensor: onnx.TensorProto) -> bool:
    return is_float(numpy_type(tensor.data_type))


# --- Names ---------------------------------------------------------------------------------------------------


_TAKEN = frozenset((
    "T_destination", "add_module", "add_submodule", "apply", "bfloat16", "buffers", "call_super_init", "children",
    "code", "compile", "cpu", "cuda", "delete_all_unused_submodules", "delete_submodule", "double", "dump_patches",
    "eval", "extra_repr", "float", "forward", "get_buffer", "get_extra_state", "get_parameter", "get_submodule",
    "graph", "half", "ipu", "load_state_dict", "modules", "mtia", "named_buffers", "named_children",
    "named_modules", "named_parameters", "parameters", "print_readable", "recompile", "register_backward_hook",
    "register_buffer", "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook",
    "register_module", "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook",
    "requires_grad_", "set_extra_state", "set_submodule", "share_memory", "state_dict", "to", "to_empty",
    "to_folder", "train", "training", "type", "xpu", "zero_grad",
))  # fmt: skip
"""Attributes of torch's modules, as of 2.13: written down, so that names do not hang on what is installed."""


def parameter_names(constants: Iterable[str]) -> list[str]:
    """Return a name in a module for each constant: its own, with the least change that makes a module have it.

    Names are paths of modules, so that none may be where another one's path leads through.
    """
    known: dict[str, int] = {}
    paths: set[str] = set()
    names: list[str] = []
    for constant in constants:
        path = ".".join(map(_step, constant.split(".")))
        if path in paths or not known.keys().isdisjoint(_modules(path)):
            path = path.replace(".", "_")
        name = unused(path, known)
        while name in paths:
            name = unused(path, known)
        paths.update(_modules(name))
        names.append(name)
    return names


def _modules(path: str) -> Iterator[str]:
    """Yield the paths of the modules that something lies in."""
    steps = path.split(".")
    return (".".join(steps[:stop]) for stop in range(1, len(steps)))


def _step(step: str) -> str:
    """Return a step of a path as a module may have it."""
    step = "".join("_" if letter in "\"'\\" or not letter.isprintable() else letter for letter in step) or "_"
    return f"{step}_" if step in _TAKEN or step.startswith("_") else step


# --- A plain form of the model -------------------------------------------------------------------------------


def _renamed(proto: onnx.ModelProto, reserved: set[str]) -> dict[str, str]:
    """Give every value of a model and of its bodies a name of its own, in place; return the old names by the new."""
    known = dict.fromkeys(reserved, 0)
    old: dict[str, str] = {}

    def rename(graph: onnx.GraphProto, outer: Mapping[str, str]) -> None:
        outputs = (name for node in graph.node for name in node.output if name)
        own = dict.fromkeys((*value_names(graph.input), *initializer_names(graph), *outputs))
        new = {name: unused(_identifier(name), known) for name in own}
        old.update({new_name: name for name, new_name in new.items()})
        new = {**outer, **new}
        for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.name = new.get(item.name, item.name)
        for node in graph.node:
            refill(node.input, [new.get(name, name) for name in node.input])
            refill(node.output, [new.get(name, name) for name in node.output])
            for body in bodies(node):
                rename(body, new)

    rename(proto.graph, {})
    return old


def _identifier(name: str) -> str:
    """Return a name as onnx2fx leaves it alone."""
    name = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
    return f"_{name}" if not name or name[0].isdigit() or keyword.iskeyword(name) else name


def _hoist(proto: onnx.ModelProto) -> None:
    """Make initializers of the main graph of Constant nodes, and of float constants in bodies, in place."""
    for scope in scopes(proto):
        is_main = scope is proto.graph
        if isinstance(scope, onnx.FunctionProto):  # what the inliner did not take
            continue
        returned = set() if is_main else set(value_names(scope.output))
        kept = []
        for node in scope.node:
            is_constant = node.op_type in traits.CONSTANTS and node.domain in DEFAULT_DOMAIN
            tensor = next((a.t for a in node.attribute if a.name == "value"), None) if is_constant else None
            if tensor is None or (not is_main and (not _is_float(tensor) or node.output[0] in returned)):
                kept.append(node)
                continue
            proto.graph.initializer.add().CopyFrom(tensor)
            proto.graph.initializer[-1].name = node.output[0]
        if len(kept) < len(scope.node):
            refill(scope.node, kept)
        if not is_main:
            moved = [_is_float(tensor) and tensor.name not in returned for tensor in scope.initializer]
            proto.graph.initializer.extend(itertools.compress(scope.initializer, moved))
            refill(scope.initializer, itertools.compress(list(scope.initializer), [not one for one in moved]))
