"""The growth rules: one line or one short function for each operator.

A rule says under which conditions on the axes of a node `op(grown inputs) = grown op(inputs)` holds: which axes are the
same, which are summed over, which keep their size. `onnx_net2net.rules.op.Op` has the statements that it can make, and
`onnx_net2net.rules.signature` the language of the one-liners. An operator without a rule freezes its dims. Rules for
operators of your own can be registered anywhere:

    from onnx_net2net.rules import rule, signature

    signature("MyLinear", "*b k, n k -> *b n", domain="my.company")

    @rule("MyNorm", domain="my.company")
    def my_norm(op):
        op.apply("*b c, c -> *b c", uniform="c")

On the command line `--rules FILE` runs such a file first. An installed package offers its rules by an entry point of
the group `onnx_net2net.rules` that names the module.

A rule has to read every input, output and attribute of its node, or declare the attribute `inert`. Otherwise the node
is frozen. `onnx_net2net.rules.traits` has facts about operators that are not about axes.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from math import prod
from typing import Any

from onnx import defs, helper

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.rules import inert as inert_attributes
from onnx_net2net.rules.op import Op, UnknownShapeError
from onnx_net2net.rules.signature import Signature, Term, pair_terms, parse
from onnx_net2net.rules.typing import Typed, type_function

Rule = Callable[[Op], None]

_registry: dict[tuple[str, str], list[tuple[int, Rule]]] = {}
_inert = inert_attributes.table()


def rule(
    *kinds: str, domain: str = "", since: int = 1, pointwise: str | None = None, inert: str = ""
) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators; use it as a decorator.

    Args:
        kinds: Operator types, like "Conv".
        domain: Operator domain; "" is ai.onnx.
        since: First opset version that the rule is for. If several rules fit a node, the newest is used.
        pointwise: See `Op.pointwise`.
        inert: Names of attributes, separated by spaces, on which no axis depends; the rule need not read them. A node
            with another attribute that the rule does not read is frozen, unless it has the schema's default value.
    """
    overlookable = frozenset(inert.split())

    def register(function: Rule) -> Rule:
        def speak(op: Op) -> None:
            op.forget_readers()
            if pointwise:
                op.pointwise(pointwise)
            try:
                function(op)
            except UnknownShapeError:
                op.freeze_all("has operands of unknown shape")
            _freeze_if_overlooked(op, overlookable)

        speak.__doc__ = function.__doc__
        for kind in kinds:
            versions = _registry.setdefault((domain, kind), [])
            versions[:] = sorted([v for v in versions if v[0] != since] + [(since, speak)], key=lambda v: v[0])
        return function

    return register


def _freeze_if_overlooked(op: Op, inert: Collection[str]) -> None:
    """Freeze a node with an attribute or an operand that its rule does not read."""
    known = _inert.get((op.domain, op.kind), ())
    for what, which in () if op.said.closed else op.overlooked():
        is_inert = what == "attribute" and (which in inert or which in known)
        if is_inert or (what == "attribute" and op.attrs[str(which)] == _default(op, str(which))):
            continue
        hint = " (see `inert` of onnx_net2net.rules.rule)" if what == "attribute" else ""
        op.freeze_all(f"has the {what} {which!r}, which its growth rule does not read{hint}")
        return


def _default(op: Op, name: str) -> Any:
    """Return the default value of an attribute; None if no schema has one."""
    try:
        value = helper.get_attribute_value(
            defs.get_schema(op.kind, op.version, op.domain).attributes[name].default_value
        )
    except (defs.SchemaError, KeyError, ValueError):
        return None
    return value.decode() if isinstance(value, bytes) else value


def signature(
    *kinds: str,
    domain: str = "",
    since: int = 1,
    sizes: dict[str, str | int] | None = None,
    fixed: str = "",
    uniform: str = "",
    scales: tuple[int, ...] = (),
    pointwise: str | None = None,
    inert: str = "",
) -> None:
    """Register a signature as the rule of operators; outside ai.onnx it also tells the shapes of their outputs.

    Args:
        kinds: Operator types, and last the signature (see `onnx_net2net.rules.signature`).
        domain: Operator domain; "" is ai.onnx.
        since: First opset version that the rule is for.
        sizes: See `Op.apply`.
        fixed: See `Op.apply`.
        uniform: See `Op.apply`.
        scales: The inputs that are factors or divisors; see `Op.scales`.
        pointwise: See `Op.pointwise`.
        inert: See `rule`.
    """
    *names, text = kinds

    def apply(op: Op) -> None:
        op.apply(text, sizes=sizes, fixed=fixed, uniform=uniform)
        op.scales(*scales)

    apply.__doc__ = text
    rule(*names, domain=domain, since=since, pointwise=pointwise, inert=inert)(apply)
    if domain:  # operators without a schema in onnx take their shapes from the signature too
        type_function(*names, domain=domain)(partial(_typed, parse(text)))


def _typed(
    signature: Signature, types: Sequence[Typed | None], attrs: Mapping[str, Any], values: Sequence[Any]
) -> list[Typed]:
    """Return dtypes and shapes of an operator's outputs; letters have the sizes that they have in the inputs."""
    sizes: dict[str, tuple[int, ...]] = {}
    for operand, known in zip(signature.inputs, types, strict=False):
        for term, _, run in pair_terms(operand, known[1]) or () if known else ():
            if term.star or len(term.names) == 1:
                sizes.setdefault(term.names[0], run)
    dtype = next(known[0] for known in types if known)
    return [(dtype, sum((_size(term, sizes) for term in operand), ())) for operand in signature.outputs]


def _size(term: Term, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if term.star:
        return sizes[term.names[0]]
    return (prod(prod(sizes[name]) for name in term.names),)


def load_rules(path: str | os.PathLike[str]) -> None:
    """Run a Python file that registers rules.

    Raises:
        BadInputError: The file cannot be read, or its code raises.
    """
    try:
        runpy.run_path(os.fspath(path), run_name="onnx_net2net_rules")
    except Exception as error:  # whatever the file does
        raise BadInputError(
            f"the rules of {path} cannot be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error


@cache
def _load_installed() -> None:
    """Load the rules that installed packages offer, once.

    Raises:
        BadInputError: A package's rules cannot be loaded.
    """
    for entry in entry_points(group="onnx_net2net.rules"):
        try:
            entry.load()
        except Exception as error:  # whatever the package does
            raise BadInputError(
                f"the rules of the installed {entry.value} cannot be loaded: {one_line(error)}"
            ) from error


def lookup(domain: str, kind: str, version: int) -> Rule | None:
    """Return the rule of an operator at an opset version, or None."""
    _load_installed()
    versions = _registry.get(("" if domain == "ai.onnx" else domain, kind), [])
    return next((function for since, function in reversed(versions) if since <= version), None)


def supported() -> Iterator[tuple[str, str, int]]:
    """Yield (domain, operator, since version) of every rule."""
    for (domain, kind), versions in sorted(_registry.items()):
        for since, _ in versions:
            yield domain, kind, since


FAMILIES = (
    "attention",
    "classical",
    "contrib",
    "control",
    "convolution",
    "elementwise",
    "experts",
    "fixed",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "quantized",
    "recurrent",
    "reduction",
)
"""The modules of this package; each registers its rules when it is imported."""

for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")

__all__ = ["FAMILIES", "Op", "load_rules", "lookup", "rule", "signature", "supported"]
