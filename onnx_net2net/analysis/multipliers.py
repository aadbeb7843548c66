"""Single numbers that scale tensors, and which of them a class computes from its sizes.

A class has `head_dim ** -0.5` in its attention, `sqrt(hidden)` behind an embedding, alpha / r in a LoRA layer, base /
width in a muP network, or gain / sqrt(inputs) for an equalized learning rate. A file has only the resulting number. A
class that is made at other sizes computes another one. The file does not tell such a number from one that is fixed in
the class. So it is compared with powers of the widths beside it, and with simple functions of the sizes that it can
depend on: those that the layers in front of it and behind it sum over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.graph.graph import Tensor
from onnx_net2net.graph.walk import constant_of, label_of, number_in, source
from onnx_net2net.rules import traits

_ADVICE = "--keep-numbers if it does not; if it does, transfer fills the wider class"
"""What to do about a number that may be a function of a size."""


def held_numbers(
    analysis: Analysis, is_made_up_for: Callable[[FrozenConstant], bool] = lambda _: False
) -> Iterator[tuple[Axis, str]]:
    """Yield each axis of whose size a class may compute a number, with the reason.

    Args:
        analysis: The dims.
        is_made_up_for: Whether weights in front of a number can be scaled, so that its size may change.
    """
    known = set()
    for constant in frozen_constants(analysis):
        is_free = any(not dim.frozen for dim in leaves(constant.axis))
        if constant.power != -1.0 or is_free:  # 1 / 3 may be 4 / 12 as well
            known.add(f"{constant.value:.5g}")
        if is_made_up_for(constant):
            continue
        yield constant.axis, f"{constant.node} has {constant.value:.6g} = {constant.text}, which a class computes anew"
    for one, size, text in computed_numbers(analysis):
        if f"{abs(one.value):.5g}" not in known:
            for dim in size.dims:
                yield dim, f"{one.node} has {one.value:.6g} = {text}, which a class may compute anew ({_ADVICE})"


def numbers_beside(analysis: Analysis, growth: Collection[Dim]) -> list[str]:
    """Return the single numbers that scale something beside dims that grow, once each, for people.

    Those of activations, and those that are a power of a size that stays, are none.
    """
    explained = {c.node for c in frozen_constants(analysis) if not leaf_set(c.axis).intersection(growth)}
    found: dict[float, list[str]] = {}
    for multiplier in multipliers(analysis):
        beside = any(size.dims.intersection(growth) for size in multiplier.sizes)
        if beside and multiplier.is_told and multiplier.node not in explained:
            found.setdefault(multiplier.value, []).append(str(multiplier))
    return [first + (f" and {len(more)} more" if more else "") for first, *more in found.values()]


def number_of(analysis: Analysis, tensor: Tensor) -> float | None:
    """Return the one float that a constant is, or that follows from sizes; else None."""
    known = analysis.sizes.values.get(tensor.name)
    if known is not None:
        return float(known.reshape(-1)[0]) if known.size == 1 and known.dtype.kind == "f" else None
    return number_in(analysis.graph, tensor)


def _factors(analysis: Analysis, number: int) -> Iterator[tuple[int, float]]:
    """Yield the inputs of a node that are one number, by which it multiplies or divides, with that as a factor."""
    node = analysis.nodes[number]
    for index in (0, 1) if node.op in traits.TIMES else (1,) if node.op in traits.QUOTIENTS else ():
        value = number_of(analysis, node.inputs[index])
        if value:
            yield index, value if node.op in traits.TIMES else 1 / value


# --- Powers of a width that a number scales ------------------------------------------------------------------

_POWERS = (0.5, -0.5, -1.0)
"""Powers of a size that classes compute: sqrt(hidden), head_dim ** -0.5, 1 / channels."""

_SHARED_POWERS = (*_POWERS, -0.25)
"""The same where two factors of a product share one: the queries and the keys of an attention."""

_BEHIND_SCORES = traits.FACTORS | traits.SUMS | traits.CASTS | traits.COPIES
"""Operators between scores and the number that scales them."""


@dataclass(frozen=True)
class ScaledNode:
    """A node that scales activations by one number."""

    node: str  # how messages call the node
    value: float  # the magnitude of the number, as a factor
    axes: tuple[Axis, ...]  # the widths that it may be for
    operand: tuple[int, int]  # the node's number and the input that is scaled, -1 where the node itself makes it


@dataclass(frozen=True)
class FrozenConstant(ScaledNode):
    """A number in the file that a class computes from one of its sizes."""

    place: int  # which of the axes has that size
    power: float  # the power of the size that it is

    @property
    def axis(self) -> Axis:
        """The axis of that size."""
        return self.axes[self.place]

    @property
    def text(self) -> str:
        """The formula."""
        return formula(self.axis.size, self.power)


def formula(size: int, power: float) -> str:
    """Return the text of a power of a size."""
    return f"sqrt({size})" if power == 0.5 else f"{size} ** {power:g}"


def frozen_constants(analysis: Analysis) -> Iterator[FrozenConstant]:
    """Find the numbers by which activations are scaled that are powers of the width that they scale or come from."""
    mixed = leaf_set(*LayerGraph(analysis).products.values())
    for scaled in scalings(analysis):
        for place, axis in enumerate(scaled.axes):
            powers = _SHARED_POWERS if leaf_set(axis) & mixed else _POWERS
            power = next((p for p in powers if math.isclose(scaled.value, axis.size**p, rel_tol=1e-3)), None)
            if axis.size > 1 and power is not None:
                yield FrozenConstant(scaled.node, scaled.value, scaled.axes, scaled.operand, place, power)
                break


def scalings(analysis: Analysis) -> Iterator[ScaledNode]:
    """Yield the nodes that scale activations by one number, which they have as an operand or as an attribute."""
    products = LayerGraph(analysis).products
    for number, said in analysis.said.items():
        label = label_of(analysis.nodes[number])
        for index, factor in _factors(analysis, number):
            axes = tuple(_scaled(analysis, number, 1 - index, products))
            yield ScaledNode(label, abs(factor), axes, (number, 1 - index))
        scale = analysis.nodes[number].attrs.get("scale")
        if isinstance(scale, float) and scale > 0 and said.contractions:
            yield ScaledNode(label, scale, tuple(c.axis for c in said.contractions), (number, -1))


def _scaled(analysis: Analysis, number: int, index: int, products: Mapping[int, Axis]) -> Iterator[Axis]:
    """Yield the widths that the scale of an operand may be for: that of the product it is, its last axis and parts."""
    tensor = analysis.nodes[number].inputs[index]
    tensor = source(tensor, _BEHIND_SCORES)
    if tensor.inputs and analysis.numbers[id(tensor.inputs[0])] in products:
        yield products[analysis.numbers[id(tensor.inputs[0])]]
    axes = analysis.input_axes(number, index)
    if axes:
        yield axes[-1]
        yield from reversed(list(leaves(axes[-1])))


# --- Simple functions of a size near a number ----------------------------------------------------------------

_PASSES = traits.ARITHMETIC | traits.CASTS | traits.COPIES | (traits.VIEWS - traits.REPEATS)
"""Operators between a layer and the number that scales what it makes or reads."""

_FURTHEST = 4
"""A number stands no more nodes away from the layer whose size it may be of."""

_LARGEST = 256
"""Numerators of no larger size are looked for: nearly any number is a quotient of large whole numbers."""

_USUAL = (0.5, 1.0, 2.0, 3.0, 6.0, 1 / 6, 1.702, 0.044715, math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi))
"""Numbers of activations and of residual branches."""

_ROUNDING = 3e-6

Where = Literal["behind", "ahead", "own", "weights"]
"""Whose size it is: what the layer that makes the operand sums over, or the one that alone reads the result; the width
of the operand; the inputs of weights that are multiplied themselves."""


@dataclass(frozen=True)
class CandidateSize:
    """A size that a number may be a function of."""

    size: int  # units
    dims: frozenset[Dim]  # its dims
    where: Where  # whose size it is


@dataclass(frozen=True)
class Multiplier:
    """A node that multiplies or divides by one number."""

    node: str  # how messages call the node
    name: str  # the name of the number
    value: float  # the number, as a factor
    in_residual: bool  # whether it scales what is added to something else that others read too
    sizes: tuple[CandidateSize, ...]  # the sizes that it may be a function of, the likely ones first

    @property
    def is_told(self) -> bool:
        """Whether people are told of it: no number of an activation, no epsilon and no mask."""
        if self.value == 1.0 or not 1e-4 < abs(self.value) < 1e4:
            return False
        return not _is_usual(self.value) or any(size.where == "behind" for size in self.sizes)

    def __str__(self) -> str:
        return f"{self.node} by {self.value:.6g} ({self.name})"


def computed_numbers(analysis: Analysis) -> Iterator[tuple[Multiplier, CandidateSize, str]]:
    """Yield the numbers that a class may compute from a size near them, with that size and the function."""
    found = list(multipliers(analysis))
    gains = _gains(found)
    for one in found:
        texts = [(function_of(one.value, size.size, size.where, one.in_residual, plain=plain), size)
                 for plain in (True, False) for size in one.sizes]  # fmt: skip
        texts += [(f"{gain:.4g} / sqrt({size.size})", size) for size, gain in _gains_of(one) if gain in gains]
        text, size = next(((text, size) for text, size in texts if text), ("", None))
        if size is not None:
            yield one, size, text


def _gains(found: list[Multiplier]) -> set[float]:
    """Return the numbers that stand over the square roots of several sizes: one gain for all layers."""
    sizes: dict[float, set[int]] = {}
    for multiplier in found:
        for size, gain in _gains_of(multiplier):
            sizes.setdefault(gain, set()).add(size.size)
    return {gain for gain, known in sizes.items() if len(known) > 1}


def _gains_of(multiplier: Multiplier) -> Iterator[tuple[CandidateSize, float]]:
    """Yield the sizes of weights over whose square roots a gain would be a number, with the gain."""
    for size in multiplier.sizes:
        if size.where == "weights":
            yield size, float(f"{abs(multiplier.value) * size.size**0.5:.5g}")


def function_of(value: float, size: int, where: Where, in_residual: bool = False, *, plain: bool | None = None) -> str:
    """Return the text of the simple function of a size that a number is, "" if it is none.

    Quotients are looked for only where a number scales all that a layer makes or reads: 0.5 in an activation is 4 / 8
    by chance, and so is the half of a residual branch anywhere.

    Args:
        value: The number.
        size: The size.
        where: Whose size it is.
        in_residual: As in `Multiplier`.
        plain: Whether only functions of nothing but the size are looked for, or only others; None for all.
    """
    value = abs(value)
    usual = _is_usual(value) and (where != "behind" or in_residual or not (value * 64).is_integer())
    if size < 2 or math.isclose(value, 1.0) or value == 0.0 or usual:
        return ""
    powers = {f"{size} ** -0.5": size**-0.5, f"sqrt({size})": size**0.5, f"log({size})": math.log(size)}
    if size > 2:
        powers |= {f"1 / {size}": 1 / size, f"{size}": size}
    for text, power in powers.items() if plain is not False else ():
        if math.isclose(value, power, rel_tol=_ROUNDING):
            return text
    if plain:
        return ""
    numerator, square = value * size, value * value * size
    is_whole = math.isclose(numerator, round(numerator), rel_tol=_ROUNDING) and 1 < round(numerator) <= _LARGEST
    if where in ("behind", "ahead") and is_whole:
        return f"{round(numerator)} / {size}"
    for whole in (2, 3, 4, 5, 6, 8) if where == "weights" else ():
        if math.isclose(square, whole, rel_tol=_ROUNDING):
            return f"sqrt({whole} / {size})"
        if math.isclose(square, 1 / whole, rel_tol=_ROUNDING):
            return f"({whole} * {size}) ** -0.5"
    return ""


def _is_usual(value: float) -> bool:
    """Tell whether people write a number down: one of activations, or 0.2, which is no quotient of a power of two."""
    value = abs(value)
    is_short = math.isclose(value, round(value, 2), rel_tol=1e-6) and not (value * 64).is_integer()
    return is_short or any(math.isclose(value, usual, rel_tol=1e-5) for usual in _USUAL)


def multipliers(analysis: Analysis) -> Iterator[Multiplier]:
    """Yield the nodes that multiply or divide activations or weights by one number."""
    for number, said in analysis.said.items():
        node, label = analysis.nodes[number], label_of(analysis.nodes[number])
        for index, factor in _factors(analysis, number):
            axes = analysis.input_axes(number, 1 - index) or ()
            is_whole = math.prod(axis.size for axis in axes) > 1
            if is_whole and analysis.sizes.dtype(node.outputs[0].name) in DIVISIBLE:
                sizes = tuple(_sizes(analysis, number, 1 - index, axes))
                yield Multiplier(label, node.inputs[index].name, factor, _in_residual(node.outputs[0]), sizes)
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op in traits.MATRICES else 1.0
        if alpha != 1.0:
            summed = tuple(size for c in said.contractions for size in _parts(c.axis, "behind"))
            yield Multiplier(label, "alpha", alpha, False, summed)


def _in_residual(tensor: Tensor) -> bool:
    """Tell whether a tensor is added to one that others read too."""
    adds = [reader for reader in tensor.outputs if reader.op in traits.SUMS]
    return any(len(other.outputs) > 1 for add in adds for other in add.inputs if other is not tensor)


def _sizes(analysis: Analysis, number: int, index: int, axes: tuple[Axis, ...]) -> Iterator[CandidateSize]:
    """Yield the sizes that the scale of an operand may be of."""
    node = analysis.nodes[number]
    if analysis.is_derived(number, index):
        if len(axes) > 1:
            inputs = axes[1:]
            yield CandidateSize(math.prod(axis.size for axis in inputs), frozenset(leaf_set(*inputs)), "weights")
            for axis in axes if len(axes) == 2 else axes[1:2]:
                yield CandidateSize(axis.size, frozenset(leaf_set(axis)), "weights")
        return
    if len(node.inputs[index].outputs) == 1 and not _is_activated(analysis, node.outputs[0]):
        for axis, where in _behind(analysis, node.inputs[index]):
            yield from _parts(axis, where)
        for axis in _ahead(analysis, node.outputs[0]):
            yield from _parts(axis, "ahead")
    yield from _parts(axes[-1], "own")


def _parts(axis: Axis, where: Where) -> Iterator[CandidateSize]:
    yield CandidateSize(axis.size, frozenset(leaf_set(axis)), where)
    for dim in leaves(axis):
        yield CandidateSize(dim.size, frozenset([dim]), where)


def _is_activated(analysis: Analysis, tensor: Tensor) -> bool:
    """Tell whether a function of each unit alone reads a result: its scale belongs to it."""
    known = [analysis.said.get(analysis.numbers.get(id(reader), -1)) for reader in tensor.outputs]
    return any(said is not None and said.pointwise in ("any", "partial") for said in known)


def _behind(analysis: Analysis, tensor: Tensor) -> Iterator[tuple[Axis, Where]]:
    """Yield the axes that the layer sums over which makes an operand, or something that it is a part of."""
    where: Where = "behind"
    for _ in range(_FURTHEST):
        if not tensor.inputs:
            return
        node = tensor.inputs[0]
        said = analysis.said.get(analysis.numbers.get(id(node), -1))
        if said is None:
            return
        if said.contractions:
            yield from ((contraction.axis, where) for contraction in said.contractions)
            return
        if node.op in traits.CUTS | traits.PICKS:
            where = "own"
        elif node.op not in _PASSES:
            return
        sources = [t for t in node.inputs if constant_of(t) is None and t.inputs]
        if node.op in traits.ARITHMETIC and len(sources) != 1:
            return
        tensor = sources[0] if sources else node.inputs[0]


def _ahead(analysis: Analysis, tensor: Tensor) -> Iterator[Axis]:
    """Yield what the layer that reads a result sums over."""
    for _ in range(_FURTHEST):
        readers = list({id(reader): reader for reader in tensor.outputs}.values())
        if len(readers) != 1:
            return
        number = analysis.numbers.get(id(readers[0]), -1)
        said = analysis.said.get(number)
        if said is None:
            return
        index = [operand is tensor for operand in readers[0].inputs].index(True)
        found = [c.axis for c in said.contractions if index in [side for side, _ in c.sides]]
        if found:
            yield from found
            return
        others = [t for t in readers[0].inputs if t is not tensor and constant_of(t) is None and t.inputs]
        if readers[0].op not in _PASSES or others:
            return
        tensor = readers[0].outputs[0]
