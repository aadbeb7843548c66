"""Names of dims, and which names a pattern matches. A dim has the name of the module whose parameters make it."""

from __future__ import annotations

import ast
import difflib
import fnmatch
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import onnx

from onnx_net2net.algebra.dims import Axis, Dim, leaves
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Node
from onnx_net2net.rules import traits

_SCOPES = "pkg.torch.onnx.name_scopes"
_ANONYMOUS = re.compile(r"^(onnx::.*|val_\d+|_val_\d+|\d+|.*::.*)$")
_PARAMETER = re.compile(
    r"((/([A-Z]\w*|convolution))?/(ReadVariableOp(_\d+)?|merged_input)"  # TensorFlow: layer/Operator/ReadVariableOp
    r"|[._/](weight|bias|kernel|gamma|beta|scale|running_mean|running_var|moving_mean|moving_variance|mean|var|w|b|W|B"
    r"|weight_bias|[wb]_\d+|(weight|bias)_[ih]h(_l\d+)?(_reverse)?))(_quantized)?(:\d+)?$"
)


T = TypeVar("T")


def matching(pattern: str, named: Sequence[T], names_of: Callable[[T], Sequence[str]], what: str) -> list[T]:
    """Return what a pattern names: whole names win over patterns, and earlier names of an item over later ones.

    Raises:
        BadInputError: If it names nothing; the text has names near it.
    """
    for match in (str.__eq__, fnmatch.fnmatchcase):  # a name may look like a pattern
        for rank in range(max(len(names_of(item)) for item in named) if named else 0):
            found = [item for item in named if match("".join(names_of(item)[rank : rank + 1]), pattern)]
            if found:
                return found
    names = list(dict.fromkeys(name for item in named for name in names_of(item) if name))
    if not names:
        raise BadInputError(f"no {what} is named {pattern!r}: the model has no {what}s")
    near = [
        name for close, name in heapq.nlargest(3, ((_closeness(pattern, name), name) for name in names)) if close > 0.4
    ]
    near = near or names[:3]
    raise BadInputError(f"no {what} is named {pattern!r}; similar names are {', '.join(near)}")


def _closeness(pattern: str, name: str) -> float:
    """Return how much of a name is in a pattern: of all of it, or of its beginning, which people type first."""
    compared = difflib.SequenceMatcher(b=pattern)
    ratios = []
    for text in (name, name[: len(pattern)], name[: len(pattern) + 1]):  # a letter may be left out
        compared.set_seq1(text)
        ratios.append(compared.ratio())
    return max(ratios)


def told_apart(names: Iterable[str]) -> list[str]:
    """Return the names, made different: the second of a kind gets #2 behind it, and so on."""
    taken: Counter[str] = Counter()
    result = []
    for name in names:
        taken[name] += 1
        result.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return result


def name_dims(analysis: Analysis, proto: onnx.ModelProto) -> dict[Dim, str]:
    """Name every dim that a constant has; names are unique and stable for a given file.

    Args:
        analysis: The dims.
        proto: The model, whose node metadata may hold module paths.
    """
    reads = {
        (number, index, position)
        for number, said in analysis.said.items()
        for contraction in said.contractions
        for index, position in contraction.sides
    }
    ranked: list[tuple[int, int, Use, int]] = []
    readers: dict[Use, int] = {}
    for (number, index), use in analysis.uses.items():
        is_matrix = sum(axis.size > 1 for axis in use.axes) > 1
        readers[use] = _reader(analysis, number) if index == 0 else number
        summed = _summed(analysis, readers[use]) if readers[use] != number else set()
        for position, axis in enumerate(use.axes):
            is_read = (number, index, position) in reads or not summed.isdisjoint(leaves(axis))
            rank = 2 if is_read else 0 if is_matrix else 1
            ranked.append((rank, number, use, position))
    names: dict[Dim, str] = {}
    taken: Counter[str] = Counter()
    ranked.sort(key=lambda entry: entry[:2])
    for frozen in (False, True):  # dims that can grow have the first choice of names
        for _, number, use, position in ranked:
            name = use.constant.name or analysis.nodes[number].inputs[use.input].name
            reader = readers[use]
            label = module_of(analysis.nodes[reader], proto.graph.node[reader], name)
            _name_axis(names, taken, label, use.axes[position], frozen)
    return names


def _reader(analysis: Analysis, number: int) -> int:
    """Return the node that reads what a node makes of a constant by dequantizing or moving it, or the node itself."""
    node = analysis.nodes[number]
    while node.op in traits.REARRANGES and len(node.outputs[0].outputs) == 1:
        node = node.outputs[0].outputs[0]
    return analysis.numbers[id(node)]


def _summed(analysis: Analysis, number: int) -> set[Dim]:
    """Return the dims that a node sums over."""
    said = analysis.said.get(number)
    return {dim for contraction in said.contractions for dim in leaves(contraction.axis)} if said else set()


def _name_axis(names: dict[Dim, str], taken: Counter[str], label: str, axis: Axis, frozen: bool) -> None:
    """Name the dims of an axis that have no name yet and are (or are not) frozen."""
    nameless = [dim for dim in dict.fromkeys(leaves(axis)) if dim not in names and bool(dim.frozen) == frozen]
    whole = [dim for dim in nameless if dim.origin is None]
    for place, dim in enumerate(whole):
        _give(names, taken, dim, f"{label}[{place}]" if len(whole) > 1 else label)
    for dim in nameless:
        if dim.origin is not None:  # units of one dim share its name
            if dim.origin not in names:
                _give(names, taken, dim.origin, label)
            names[dim] = names[dim.origin]


def _give(names: dict[Dim, str], taken: Counter[str], dim: Dim, label: str) -> None:
    taken[label] += 1
    names[dim] = label if taken[label] == 1 else f"{label}#{taken[label]}"


def module_of(node: Node, proto: onnx.NodeProto, constant: str) -> str:
    """Return the path of the module that a node belongs to, or the best name that there is for it."""
    if not is_anonymous(constant):
        return _PARAMETER.sub("", constant)
    return scope_of(proto) or constant or node.op


def is_anonymous(constant: str) -> bool:
    """Tell whether an exporter made up the name of a constant."""
    return bool(_ANONYMOUS.match(constant)) or constant.startswith("/") or "_output_" in constant


def scope_of(proto: onnx.NodeProto) -> str:
    """Return the path of the module that a node belongs to, as the exporter tells it, "" if it does not."""
    for entry in proto.metadata_props:
        if entry.key == _SCOPES:
            scopes = _literal_list(entry.value)
            if len(scopes) > 1 and scopes[-2]:
                return scopes[-2]
    return _path(proto.name)


def _literal_list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in value] if isinstance(value, list) else []


def _path(name: str) -> str:
    """Turn a node name like /layer1/layer1.0/conv1/Conv into layer1.0.conv1."""
    if "/" not in name:
        return ""
    path: list[str] = []
    for step in name.strip("/").split("/")[:-1]:
        if path and step.startswith(path[-1] + "."):  # a module of a list is called after it
            path.pop()
        path.append(step)
    return ".".join(path)
