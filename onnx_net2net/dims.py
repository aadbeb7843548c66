"""The algebra of axes: every axis of every tensor is an expression over dims.

    axis := dim | product of axes (row-major) | concatenation of axes

A dim is an index set with a size. `unify` states that two axes index the same units in the same order;
it refines both sides until they agree (union-find on dims, common factors for products, common cuts for
concatenations). Where they cannot agree both sides are *frozen*: they keep their size, which is always safe.

    (c h w)  and  (f x)        f becomes (c h w) / x when the factors divide
    (3 h d)  and  q + k + v    q, k and v each become (h d)
    a + b    and  c + d        cut both at the union of the boundaries
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from math import prod

_serial = count()


class Ratio:
    """Dims that share a ratio must all grow by the same whole factor.

    Attributes:
        members: How many dims there are that still stand.
        frozen: Why one of them cannot grow, so that none can, or None.
    """

    __slots__ = ("_to", "frozen", "members")

    def __init__(self) -> None:
        self._to: Ratio | None = None
        self.members = 0
        self.frozen: str | None = None

    @property
    def shared(self) -> bool:
        """Whether there is more than one such dim."""
        return self.root().members > 1

    def root(self) -> Ratio:
        """Return the representative of the class."""
        root = self
        while root._to is not None:
            root = root._to
        return root

    def join(self, other: Ratio) -> None:
        """Make both one class."""
        mine, its = self.root(), other.root()
        if mine is not its:
            mine._to = its
            its.members += mine.members
            its.frozen = its.frozen or mine.frozen


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
    """

    __slots__ = ("_to", "copies", "fixed", "origin", "pinned", "ratio", "serial", "size", "statistic")

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


class Product:
    """Axes merged into one, row-major: the last factor varies fastest."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Iterable[Axis]) -> None:
        self.parts = tuple(parts)
        self.size: int = prod(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self.parts)) + ")"


class Concat:
    """Axes laid end to end."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Iterable[Axis]) -> None:
        self.parts = tuple(parts)
        self.size: int = sum(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "[" + " + ".join(map(repr, self.parts)) + "]"


Axis = Dim | Product | Concat
Axes = tuple[Axis, ...]


def resolve(axis: Axis) -> Axis:
    """Return the axis in normal form over the dims that stand now.

    Nested products and concatenations are flat, frozen factors of size 1 are gone, and a product whose first
    factor is a concatenation is a concatenation of products.
    """
    if isinstance(axis, Dim):
        if axis._to is None:
            return axis
        axis._to = resolve(axis._to)  # path compression
        return axis._to
    parts = [resolve(part) for part in axis.parts]
    if isinstance(axis, Concat):
        return _concat(part for part in parts if part.size)
    return _product(part for part in parts if not (part.size == 1 and isinstance(part, Dim) and part.frozen))


def _concat(parts: Iterable[Axis]) -> Axis:
    flat = [leaf for part in parts for leaf in (part.parts if isinstance(part, Concat) else (part,))]
    return flat[0] if len(flat) == 1 else Concat(flat) if flat else Dim(0, "an empty axis")


def _product(parts: Iterable[Axis]) -> Axis:
    flat = [leaf for part in parts for leaf in (part.parts if isinstance(part, Product) else (part,))]
    if not flat:
        return Dim(1)
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Concat):
        return _concat(_product((head, *flat[1:])) for head in flat[0].parts)
    return Product(flat)


def leaves(axis: Axis) -> Iterator[Dim]:
    """Yield the dims of an axis in layout order; one that occurs twice is yielded twice."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


def leaf_set(*axes: Axis) -> set[Dim]:
    """Return the dims of some axes."""
    return {dim for axis in axes for dim in leaves(axis)}


def freeze(axis: Axis, reason: str) -> None:
    """Fix the size and order of every dim of the axis; the first reason given is kept."""
    for dim in leaves(axis):
        dim.fixed = dim.fixed or reason
        _stick(dim)


def pin(axis: Axis, reason: str) -> None:
    """Keep the size of every dim of the axis unless it is asked for by name; the first reason given is kept."""
    for dim in leaves(axis):
        dim.pinned = dim.pinned or reason
        _stick(dim)


def _stick(dim: Dim) -> None:
    """Let the ratio of a frozen dim remember that it is."""
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
        _stick(axis)
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


def unify(a: Axis, b: Axis, reason: str) -> bool:
    """State that two axes are the same; freeze both, with the reason, where they cannot be.

    Returns:
        Whether the two could be made the same.
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return True
    if a.size == b.size and _unify(a, b, reason):
        return True
    freeze(a, reason)
    freeze(b, reason)
    return False


def _unify(a: Axis, b: Axis, reason: str) -> bool:
    if isinstance(a, Dim):
        return _bind(a, b, reason)
    if isinstance(b, Dim):
        return _bind(b, a, reason)
    if isinstance(a, Concat) or isinstance(b, Concat):
        return _unify_concats(_terms(a), _terms(b), reason)
    return _unify_products(list(a.parts), list(b.parts), reason)


def _terms(axis: Axis) -> list[Axis]:
    return list(axis.parts) if isinstance(axis, Concat) else [axis]


def _bind(dim: Dim, axis: Axis, reason: str) -> bool:
    if isinstance(axis, Dim) and axis.serial > dim.serial:  # the older dim stays, so that names are stable
        dim, axis = axis, dim
    if any(leaf is dim for leaf in leaves(axis)):
        return False
    _inherit(axis, dim, reason)
    _retire(dim, axis)
    return True


def _inherit(axis: Axis, dim: Dim, reason: str) -> None:
    """Carry over to the axis what is known of the dim that it replaces."""
    if dim.fixed:
        freeze(axis, dim.fixed)
    if dim.pinned:
        pin(axis, dim.pinned)
    if dim.ratio:
        keep_uniform(axis, dim.statistic or reason, dim.ratio)
    if dim.copies:
        only_copies(axis, dim.copies)


def _unify_concats(xs: list[Axis], ys: list[Axis], reason: str) -> bool:
    """Cut both sides at the union of their boundaries, from the left."""
    agreed = True
    while xs and ys:
        # What has just been unified may have changed the terms that are still to come.
        x, y = resolve(xs.pop(0)), resolve(ys.pop(0))
        if isinstance(x, Concat) or isinstance(y, Concat):
            xs[:0], ys[:0] = _terms(x), _terms(y)
            continue
        if x.size != y.size:
            longer, rest, size = (x, xs, y.size) if x.size > y.size else (y, ys, x.size)
            halves = cut(longer, size)
            if halves is None:
                for left in (x, y, *xs, *ys):
                    freeze(left, reason)
                return False
            rest[:0] = halves
            (ys if rest is xs else xs).insert(0, y if rest is xs else x)
            continue
        agreed &= unify(x, y, reason)
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
                for left in (x, y, *xs, *ys):
                    freeze(left, reason)
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
        terms = list(axis.parts)
        before: list[Axis] = []
        while size >= terms[0].size:
            before.append(terms.pop(0))
            size -= before[-1].size
        if size:
            halves_ = cut(terms[0], size)
            if halves_ is None:
                return None
            before.append(halves_[0])
            terms[0] = halves_[1]
        return resolve(Concat(before)), resolve(Concat(terms))
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
    if isinstance(axis, Product) or axis.size % size:
        return None
    if isinstance(axis, Dim):
        halves = Dim(axis.size // size), Dim(size)
        _replace(axis, Product(halves))
        return halves
    if any(part.size % size for part in axis.parts):
        return None
    inner = Dim(size)
    outer = []
    for part in axis.parts:
        outer.append(Dim(part.size // size))
        if not unify(part, Product((outer[-1], inner)), reason):
            return None
    return Concat(outer), inner


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


def _replace(dim: Dim, axis: Axis) -> None:
    """Bind a dim to an axis of fresh dims."""
    _inherit(axis, dim, dim.frozen or "a statistic runs over it")
    _retire(dim, axis)


def _retire(dim: Dim, axis: Axis) -> None:
    dim._to = axis
    if dim.ratio is not None:
        dim.ratio.root().members -= 1
