"""The growth rules: one line or one short function an operator.

A rule states what `op(grown inputs) = grown op(inputs)` needs of the axes of a node; see
`onnx_net2net.operation.Op` for what it may say and `onnx_net2net.signature` for the language of the one-liners.
An operator without a rule freezes its dims. Rules for operators of your own are registered from anywhere:

    from onnx_net2net.rules import rule, signature

    signature("MyLinear", "*b k, n k -> *b n", domain="my.company")

    @rule("MyNorm", domain="my.company")
    def my_norm(op):
        op.apply("*b c, c -> *b c", uniform="c")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx_net2net.operation import Op

Rule = Callable[[Op], None]

_registry: dict[tuple[str, str], list[tuple[int, Rule]]] = {}


def rule(*kinds: str, domain: str = "", since: int = 1) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators.

    Args:
        kinds: Operator types.
        domain: Operator domain; "" is ai.onnx.
        since: First opset version of the domain that the rule speaks for; the newest that fits is used.
    """

    def register(function: Rule) -> Rule:
        for kind in kinds:
            versions = _registry.setdefault((domain, kind), [])
            versions[:] = sorted([v for v in versions if v[0] != since] + [(since, function)], key=lambda v: v[0])
        return function

    return register


def signature(
    *kinds: str,
    domain: str = "",
    since: int = 1,
    sizes: dict[str, str | int] | None = None,
    fixed: str = "",
    uniform: str = "",
    scales: tuple[int, ...] = (),
    pointwise: str | None = None,
) -> None:
    """Register a signature as the rule of operators; the last of `kinds` is the signature itself.

    Args:
        kinds: Operator types, then the signature.
        domain: Operator domain.
        since: First opset version.
        sizes: See `Op.apply`.
        fixed: See `Op.apply`.
        uniform: See `Op.apply`.
        scales: See `Op.scales`.
        pointwise: See `Op.pointwise`.
    """
    *names, text = kinds

    def apply(op: Op) -> None:
        op.apply(text, sizes=sizes, fixed=fixed, uniform=uniform)
        op.scales(*scales)
        if pointwise:
            op.pointwise(pointwise)

    apply.__doc__ = text
    rule(*names, domain=domain, since=since)(apply)


def lookup(domain: str, kind: str, version: int) -> Rule | None:
    """Return the rule of an operator at an opset version, or None."""
    versions = _registry.get(("" if domain == "ai.onnx" else domain, kind), [])
    return next((function for since, function in reversed(versions) if since <= version), None)


def supported() -> Iterator[tuple[str, str, int]]:
    """Yield (domain, operator, since version) of every rule."""
    for (domain, kind), versions in sorted(_registry.items()):
        for since, _ in versions:
            yield domain, kind, since


from onnx_net2net.rules import (  # noqa: E402  the families register themselves
    convolution,
    elementwise,
    linear,
    movement,
    normalization,
    reduction,
)

__all__ = [
    "Op",
    "convolution",
    "elementwise",
    "linear",
    "lookup",
    "movement",
    "normalization",
    "reduction",
    "rule",
    "signature",
    "supported",
]
