"""The algebra of axes: every axis of every tensor is an expression over dims.

    axis := dim | product of axes (row-major) | concatenation of axes

A dim is an index set with a size. `unify` states that two axes index the same units in the same order;
it refines both sides until they agree (union-find on dims, common factors for products, common cuts for
concatenations). Where they cannot agree both sides are *frozen*: they keep their size, which is always safe.

    (c h w)  and  (f x)        f becomes (c h w) / x when the factors divide
    (3 h d)  and  q + k + v    q, k and v each become (h d)
    a + b    and  c + d        cut both at the union of the boundaries

Chains of refinements may be as long as an axis has units, so nothing here recurses along them. An expression of more
than `LIMIT` dims is not followed: its dims are frozen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, count
from math import prod

from onnx_net2net.algebra.ratios import Ratio

LIMIT = 4096
"""An axis of more dims (a concatenation doubled over and over) is frozen."""

_serial = count()
_changes = 0
"""Counts what changed a normal form that is remembered; one that was found since the last time still holds."""


class Dim:
    """An index set of `size` units: a channel dim, heads, a group count, a batch.

    Attributes:
        size: Number of units in the teacher.
        fixed: Why the dim must keep its size and order, or None.
        pinned: Why it keeps its size unless it is asked for by name (it is the model's input or output), or None.
        ratio: Set when every unit must be copied the same number of times.
        statistic: Why that is so: the node that takes a statistic over the dim.
        copies: Why new units must be copies of old ones (a maximum runs over the dim), or None.
        origin: For a single unit cut out of a larger dim, that dim; units are then chosen among all of it.
        length: How many dims it is made of, as for the other axes: 1.
    """

    length = 1
    __slots__ = ("_inside", "_to", "copies", "fixed", "origin", "pinned", "ratio", "serial", "size", "statistic")

    def __init__(self, size: int, fixed: str | None = None, origin: Dim | None = None) -> None:
        self.size = size
        self.fixed = fixed
        self.pinned: str | None = None
        self.ratio: Ratio | None = None
        self.statistic: str | None = None
        self.copies: str | None = None
        self.origin = origin
        self.serial = next(_serial)
        self._to: Axis | None = None
        self._inside = False  # whether a normal form that is remembered has it
        if size <= 1 and fixed is None and origin is None:
            self.fixed = "an axis of size 1 broadcasts"

    @classmethod
    def single(cls) -> Dim:
        """Return a dim of one unit that does not broadcast."""
        dim = cls(1)
        dim.fixed = None
        return dim

    @property
    def frozen(self) -> str | None:
        """Why the dim does not grow of itself: it is fixed or pinned."""
        return self.fixed or self.pinned

    def __repr__(self) -> str:
        return f"d{self.serial}:{self.size}{'!' if self.frozen else ''}"


class _Composite:
    """An axis made of others; `_normal` is its normal form as long as `_changes` is `_seen`."""

    __slots__ = ("_normal", "_seen", "length", "parts", "size")
    size: int
    length: int

    def __init__(self, parts: Iterable[Axis], total: Callable[[Iterable[int]], int]) -> None:
        self.parts: tuple[Axis, ...] = tuple(parts)
        self.size: int = total([part.size for part in self.parts])
        self.length: int = sum([part.length for part in self.parts])
        self._normal: Axis | None = None
        self._seen = -1


class Product(_Composite):
    """Axes merged into one, row-major: the last factor varies fastest."""

    __slots__ = ()

    def __init__(self, parts: Iterable[Axis]) -> None:
        super().__init__(parts, prod)

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self.parts)) + ")"


class Concat(_Composite):
    """Axes laid end to end."""

    __slots__ = ()

    def __init__(self, parts: Iterable[Axis]) -> None:
        super().__init__(parts, sum)

    def __repr__(self) -> str:
        return "[" + " + ".join(map(repr, self.parts)) + "]"


Axis = Dim | Product | Concat
Axes = tuple[Axis, ...]


def resolve(axis: Axis) -> Axis:
    """Return the axis in normal form over the dims that stand now.

    Nested products and concatenations are flat, frozen factors of size 1 are gone, and a product whose first
    factor is a concatenation is a concatenation of products.
    """
    known = axis
    if type(axis) is Dim:  # a type is told faster than an instance, and this runs most
        known = axis if axis._to is None else axis._to
        if type(known) is Dim and known._to is None:
            return known
    if (found := _known(known)) is not None:
        return found
    result: list[Axis] = []
    # What is being built: a kind of axis, the normal parts found so far, and the parts that are still to be looked at.
    building: list[tuple[type[Axis] | None, list[Axis], Iterator[Axis]]] = [(None, result, iter((axis,)))]
    while building:
        kind, found_parts, rest = building[-1]
        for part in rest:
            while isinstance(part, Dim) and part._to is not None:
                part = part._to
            normal = _known(part)
            if normal is not None:
                found_parts.append(normal)
                continue
            inner = found_parts if type(part) is kind else []  # a sum in a sum, which may be nested deeply, is one
            building.append((type(part), inner, iter(part.parts)))  # type: ignore[union-attr]
            break
        else:
            building.pop()
            if building and building[-1][1] is not found_parts:
                building[-1][1].append(_normal(found_parts, kind is Concat))
    if isinstance(axis, Dim):
        axis._to = result[0]  # path compression
    elif not isinstance(result[0], Dim):
        axis._normal, axis._seen = result[0], _changes
    return result[0]


def _known(axis: Axis) -> Axis | None:
    """Return the normal form of an axis where it is known."""
    if type(axis) is Dim:
        return axis if axis._to is None else None
    return axis._normal if axis._seen == _changes else None  # type: ignore[union-attr]


def _normal(parts: Iterable[Axis], is_concat: bool) -> Axis:
    """Return the concatenation or product of parts in normal form."""
    axis = _concat(part for part in parts if part.size) if is_concat else _product(parts)
    if not isinstance(axis, Dim):
        axis._normal, axis._seen = axis, _changes
        for part in axis.parts:
            if type(part) is Dim:
                part._inside = True
    return axis


def _concat(parts: Iterable[Axis]) -> Axis:
    flat: list[Axis] = []
    for part in parts:
        flat += part.parts if isinstance(part, Concat) else (part,)
    return flat[0] if len(flat) == 1 else Concat(flat) if flat else Dim(0, "an empty axis")


def _product(parts: Iterable[Axis]) -> Axis:
    flat = [leaf for part in parts for leaf in (part.parts if isinstance(part, Product) else (part,))]
    flat = [part for part in flat if not (part.size == 1 and isinstance(part, Dim) and part.frozen)]
    if not flat:
        return Dim(1)
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Concat):
        return _concat(_normal((head, *flat[1:]), False) for head in flat[0].parts)
    return Product(flat)


def leaves(axis: Axis) -> Sequence[Dim]:
    """Return the dims of an axis in layout order; one that occurs twice is there twice."""
    axis = resolve(axis)
    found = (axis,) if isinstance(axis, Dim) else axis.parts
    while len(found) < axis.length:
        found = tuple(leaf for part in found for leaf in ((part,) if isinstance(part, Dim) else part.parts))
    return found  # type: ignore[return-value]


def leaf_set(*axes: Axis) -> set[Dim]:
    """Return the dims of some axes."""
    return set().union(*map(leaves, axes))


def freeze(axis: Axis, reason: str) -> None:
    """Fix the size and order of every dim of the axis; the first reason given is kept."""
    for dim in leaves(axis):
        if dim.fixed is None:
            dim.fixed = reason
            _hold(dim)


def pin(axis: Axis, reason: str) -> None:
    """Keep the size of every dim of the axis unless it is asked for by name; the first reason given is kept."""
    for dim in leaves(axis):
        if dim.pinned is None:
            dim.pinned = reason
            _hold(dim)


def _hold(dim: Dim) -> None:
    """Tell the ratio of a dim that was frozen, and forget normal forms: a frozen unit is no factor of a product."""
    if dim.size == 1 and dim._inside:
        _note_change()
    if dim.frozen and dim.ratio is not None:
        root = dim.ratio.root()
        root.frozen = root.frozen or dim.frozen


def keep_uniform(axis: Axis, reason: str, ratio: Ratio | None = None) -> None:
    """Allow only growth that copies every unit of the axis the same number of times."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        if axis.ratio is None:
            axis.ratio = ratio or Ratio()
            axis.ratio.root().members += 1
        elif ratio is not None:
            axis.ratio.join(ratio)
        axis.statistic = axis.statistic or reason
        _hold(axis)
    elif isinstance(axis, Product) and (ratio is None or not ratio.shared):
        for part in axis.parts:
            keep_uniform(part, reason)
    elif isinstance(axis, Concat) and all(isinstance(part, Dim) for part in axis.parts):
        shared = ratio or Ratio()
        for part in axis.parts:
            keep_uniform(part, reason, shared)
    else:
        freeze(axis, reason)


def only_copies(axis: Axis, reason: str) -> None:
    """Allow only growth whose new units are copies of old ones."""
    for dim in leaves(axis):
        dim.copies = dim.copies or reason


def join(a: Axis, b: Axis) -> bool:
    """State that two axes are the same where they are dims of one size, as nearly always; tell whether they are now."""
    a, b = resolve(a), resolve(b)
    return a is b or (type(a) is Dim is type(b) and a.size == b.size and _bind(a, b))


def unify(a: Axis, b: Axis, reason: str) -> bool:
    """State that two axes are the same; freeze both, with the reason, where they cannot be.

    Returns:
        Whether the two could be made the same.
    """
    if join(a, b):
        return True
    a, b = resolve(a), resolve(b)
    if isinstance(a, Concat) and isinstance(b, Concat) and a.parts == b.parts:
        return True
    if a.size == b.size and max(a.length, b.length) <= LIMIT and _unify(a, b, reason):
        return True
    freeze(a, reason)
    freeze(b, reason)
    return False


def _unify(a: Axis, b: Axis, reason: str) -> bool:
    if isinstance(a, Dim):
        return _bind(a, b)
    if isinstance(b, Dim):
        return _bind(b, a)
    if isinstance(a, Concat) or isinstance(b, Concat):
        return _unify_concats(_terms(a), _terms(b), reason)
    return _unify_products(list(a.parts), list(b.parts), reason)


def _terms(axis: Axis) -> list[Axis]:
    return list(axis.parts) if isinstance(axis, Concat) else [axis]


def _bind(dim: Dim, axis: Axis) -> bool:
    if isinstance(axis, Dim) and axis.serial > dim.serial:  # the older dim stays, so that names are stable
        dim, axis = axis, dim
    if dim._inside and not isinstance(axis, Dim) and dim in leaf_set(axis):
        return False
    _replace(dim, axis)
    return True


def _replace(dim: Dim, axis: Axis) -> None:
    """Bind a dim to an axis, which gets to know what is known of the dim."""
    if dim.fixed:
        freeze(axis, dim.fixed)
    if dim.pinned:
        pin(axis, dim.pinned)
    if dim.ratio:
        keep_uniform(axis, dim.statistic or "a statistic runs over it", dim.ratio)
    if dim.copies:
        only_copies(axis, dim.copies)
    dim._to = axis
    if dim._inside:
        _note_change()
    if dim.ratio:
        dim.ratio.root().members -= 1


def _unify_concats(xs: list[Axis], ys: list[Axis], reason: str) -> bool:
    """Cut both sides at the union of their boundaries, from the left.

    An axis that is laid over itself with a shift is cut once for each time that the shift fits in; beyond `LIMIT`
    cuts what is left is frozen.
    """
    agreed, cuts = True, 0
    left, right = xs[::-1], ys[::-1]  # the first term stands last
    while left and right:
        # What has just been unified may have changed the terms that are still to come.
        x, y = resolve(left.pop()), resolve(right.pop())
        if isinstance(x, Concat) or isinstance(y, Concat):
            left += reversed(_terms(x))
            right += reversed(_terms(y))
            continue
        if x.size == y.size:
            agreed &= unify(x, y, reason)
            continue
        longer, rest, size = (x, left, y.size) if x.size > y.size else (y, right, x.size)
        cuts += 1
        halves = cut(longer, size) if cuts <= LIMIT else None
        if halves is None:
            return False
        rest += reversed(halves)
        (right if rest is left else left).append(y if rest is left else x)
    return agreed


def _unify_products(xs: list[Axis], ys: list[Axis], reason: str) -> bool:
    """Refine both sides to common factors, from the right."""
    agreed = True
    while xs and ys:
        x, y = resolve(xs.pop()), resolve(ys.pop())
        if x.size != y.size and not (isinstance(x, Product) or isinstance(y, Product)):
            larger, rest, size = (x, xs, y.size) if x.size > y.size else (y, ys, x.size)
            factors = factor(larger, size, reason)
            if factors is None:
                return False
            rest += factors
            (ys if rest is xs else xs).append(y if rest is xs else x)
        elif isinstance(x, Product) or isinstance(y, Product):
            xs += x.parts if isinstance(x, Product) else (x,)
            ys += y.parts if isinstance(y, Product) else (y,)
        else:
            agreed &= unify(x, y, reason)
    for left in (*xs, *ys):  # factors of size 1 that have no counterpart
        freeze(left, reason)
    return agreed


def cut(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """Cut an axis into its first `size` units and the rest; None where the cut would fall inside a factor."""
    axis = resolve(axis)
    if size in (0, axis.size):
        empty = Dim(0, "an empty axis")
        return (axis, empty) if size else (empty, axis)
    if isinstance(axis, Dim):
        halves = Dim(size), Dim(axis.size - size)
        _replace(axis, Concat(halves))
        return halves
    if isinstance(axis, Concat):
        ends = list(accumulate(part.size for part in axis.parts))
        place = bisect_right(ends, size)  # of the term that the cut falls into, or in front of
        before, after = list(axis.parts[:place]), list(axis.parts[place:])
        inside = size - (ends[place - 1] if place else 0)
        if inside:
            halves_ = cut(after[0], inside)
            if halves_ is None:
                return None
            before.append(halves_[0])
            after[0] = halves_[1]
        return resolve(Concat(before)), resolve(Concat(after))
    rest = axis.size // axis.parts[0].size
    if size % rest:
        return None
    heads = cut(axis.parts[0], size // rest)
    if heads is None:
        return None
    first, second = (resolve(Product((head, *axis.parts[1:]))) for head in heads)
    return first, second


def factor(axis: Axis, size: int, reason: str) -> tuple[Axis, Axis] | None:
    """Write an axis as (outer, inner) with `inner` of the given size; None where it does not divide so."""
    axis = resolve(axis)
    if axis.size % size or (isinstance(axis, Concat) and any(part.size % size for part in axis.parts)):
        return None
    inner = Dim(size)
    if isinstance(axis, Dim):
        halves = Dim(axis.size // size), inner
        _replace(axis, Product(halves))
        return halves
    parts = _terms(axis)
    outer = [Dim(part.size // size) for part in parts]
    if not all(unify(part, Product((one, inner)), reason) for part, one in zip(parts, outer, strict=True)):
        return None
    return resolve(Concat(outer)), resolve(inner)


def units(axis: Axis) -> list[Axis]:
    """Cut an axis into single units, each made of dims of size 1, so that they can be rearranged."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        if axis.size == 1:
            return [axis]
        pieces = [Dim(1, axis.fixed, origin=axis) for _ in range(axis.size)]
        _replace(axis, Concat(pieces))
        return list(pieces)
    if isinstance(axis, Product):
        rows, columns = units(axis.parts[0]), units(Product(axis.parts[1:]))
        for row in rows:  # copies of a row would stand between its units and the next row's
            freeze(row, "its units are rearranged one by one")
        return [column for _ in rows for column in columns]
    return [unit for part in axis.parts for unit in units(part)]


def _note_change() -> None:
    """Forget the normal forms that are known."""
    global _changes
    _changes += 1
