"""Attention as one operator: heads, and the widths of queries, keys and values, are dims.

Of h query heads, r read each of the g heads of keys and values: h = (g r). With d the width of a query or key and v
that of a value, queries are (g r d), keys (g d), values (g v) and results (g r v). Heads are copied whole. The scores
sum over d inside the operator, so that the queries carry the weights of copies. A scale that the operator takes from
the size of d is written down when d grows; operands that hold queries or keys together with values fix d. Keys are
not permuted: what runs over positions (softmax, masks, caches) works along them.
"""

from __future__ import annotations

from onnx_net2net.algebra.dims import Axes, Axis, Concat, Dim, Product
from onnx_net2net.rules import rule
from onnx_net2net.rules.normalization import typed_as_input
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.reasons import KERNEL
from onnx_net2net.rules.typing import Attributes, InputValues, Typed, Types, type_function

MICROSOFT = "com.microsoft"
PACKED = "reads queries, keys and values from one operand, where only some would carry the weights of copies"


@rule("Attention", since=23)
def attention(op: Op) -> None:
    """Softmax(q k' * scale + mask) v, per head; inputs are (b s (h d)) with head counts, or (b h s d)."""
    query, key, value = op.known(0), op.known(1), op.known(2)
    if len(query) == 3:
        groups, heads = int(op.attrs["kv_num_heads"]), int(op.attrs["q_num_heads"])
    else:
        groups, heads = key[1].size, query[1].size
    said = _Attention(op, query, key, groups, heads, _width(value, groups))
    said.query(query)
    said.keys(key, said.width)
    said.keys(value, said.value)
    said.mask(3)
    said.cache(4, 1)
    said.positions(6)
    said.results(3)
    windows = [op.attrs.get(f"{side}_window_size", -1) for side in ("left", "right")]
    if op.attrs.get("is_causal", 0) or max(windows) >= 0:
        op.freeze(said.rows, KERNEL)
    if len(query) == 3:
        op.attribute("q_num_heads", said.heads)
        op.attribute("kv_num_heads", said.group)
    said.scores()


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(op: Op) -> None:
    """Attention of (b s (h d)); keys and values may be (b h t d), or stand with the queries in (b s h 3 d)."""
    query, key, value = op.input(0), op.input(1), op.input(2)
    if query is None:
        return
    heads = int(op.attrs["num_heads"])
    wide = _width(value, heads) if value else query[-1].size if key is None else key[-1].size
    said = _Attention(op, query, key or query, heads, heads, wide)
    if key is None:
        op.unify_all(query, (said.batch, said.rows, said.heads, Dim(3, KERNEL), said.width))
    else:
        said.query(query)
    if key is not None and value is None:
        op.unify_all(key, (said.batch, said.columns, said.heads, Dim(2, KERNEL), said.width))
    if value is None:
        op.unify(said.width, said.value)
        op.freeze(said.width, PACKED)
    else:
        said.keys(key, said.width)
        said.keys(value, said.value)
    if op.has(3):
        said.packed(op.input(3))
        op.freeze(said.width, PACKED)
    if op.has(6) or (key is not None and len(key) == 4):
        op.unify(said.value, said.width)  # the operator knows one size for both
    said.mask(5)
    said.cache(6, 1)
    said.positions(4, 8, 9)
    said.results(3)
    if op.attrs.get("unidirectional", 0):
        op.freeze(said.rows, KERNEL)
    op.attribute("num_heads", said.heads)
    said.scores()


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(op: Op) -> None:
    """Attention of (b s (g r d)), with rotation and cache; heads of all three in one operand stand end to end."""
    query, key, value = op.input(0), op.input(1), op.input(2)
    if query is None:
        return
    heads, groups = int(op.attrs["num_heads"]), int(op.attrs["kv_num_heads"])
    width = query[2].size // (heads if key else heads + 2 * groups)
    said = _Attention(op, query, key or query, groups, heads, width, width)
    op.unify(said.value, said.width)
    op.freeze(said.width, "takes multiples of 8 along this axis, and one size for keys and values")
    if key is None:
        op.unify_all(query, (said.batch, said.rows, _end_to_end(said.heads, said.group, said.width, said.width)))
    else:
        said.query(query)
        said.keys(key, said.width)
        said.keys(value, said.width)
    said.positions(5, 6, 9, 12, 13)
    for index in (7, 8, 14, 15):
        op.freeze(op.input(index), KERNEL)
    sink = op.input(11)
    if sink is not None:
        op.unify(sink[0], said.heads)
    said.mask(10)
    said.cache(3, 1)
    said.results(3)
    op.attribute("num_heads", said.heads)
    op.attribute("kv_num_heads", said.group)
    said.scores()


@rule("Attention", domain=MICROSOFT)
def self_attention(op: Op) -> None:
    """Attention of x W + b, where W makes the queries, keys and values of all heads, end to end."""
    source, weights, result = op.known(0), op.known(1), op.result()
    heads = int(op.attrs["num_heads"])
    said = _Attention(op, (*source[:2], weights[1]), source, heads, heads, result[2].size // heads, 1)
    width = (weights[1].size - result[2].size) // (2 * heads)
    said.width = Dim(width)
    op.unify(source[-1], weights[0])
    op.contract(source[-1], [(0, 2), (1, 0)])
    op.unify_all(source[:2], (said.batch, said.rows))
    said.packed(weights[1:])
    said.packed(op.input(2))
    op.freeze(said.width, PACKED)
    for cache in (op.input(4), op.output(1)):
        if cache is not None:  # (2 b h t d), keys and values one behind the other
            op.freeze((cache[0], cache[3]), KERNEL)
            op.unify_all((cache[1], cache[2], cache[4]), (said.batch, said.heads, said.value))
            op.freeze(said.value, PACKED)
    said.positions(3, 6)
    said.mask(5)
    said.results(2)
    if op.attrs.get("unidirectional", 0):
        op.freeze(said.rows, KERNEL)
    op.attribute("num_heads", said.heads)
    for element, wide in enumerate((said.width, said.width, said.value)):
        op.attribute("qkv_hidden_sizes", Product((said.heads, wide)), element=element)


class _Attention:
    """The dims of one attention, and what is said of them.

    Attributes:
        batch: Sequences.
        rows: Positions of queries.
        columns: Positions of keys, which never grow.
        group: Heads of keys and values.
        heads: Heads of queries, (group repeat).
        width: Of a query or key.
        value: Of a value.
    """

    def __init__(
        self, op: Op, query: Axes, key: Axes, groups: int, heads: int, value: int, width: int | None = None
    ) -> None:
        self.op = op
        self.group = Dim(groups)
        self.heads: Axis = Product((self.group, Dim(heads // groups)))
        self.width: Axis = Dim(_width(query, heads) if width is None else width)
        self.value: Axis = Dim(value)
        self.batch, self.rows = query[0], query[2 if len(query) == 4 else 1]
        self.columns = key[2 if len(key) == 4 else 1]
        op.freeze(self.columns, KERNEL)

    def query(self, axes: Axes) -> None:
        """State what the queries are made of."""
        self.op.unify_all(axes, _laid_out(axes, self.batch, self.heads, self.rows, self.width))

    def keys(self, axes: Axes | None, width: Axis) -> None:
        """State what the keys or values are made of."""
        if axes is not None:
            self.op.unify_all(axes, _laid_out(axes, self.batch, self.group, self.columns, width))

    def packed(self, axes: Axes | None) -> None:
        """State that an axis has the queries, keys and values of all heads, end to end."""
        if axes is not None:
            self.op.unify(axes[0], _end_to_end(self.heads, self.group, self.width, self.value))

    def mask(self, index: int) -> None:
        """State how a mask or bias broadcasts to the scores."""
        mask = self.op.input(index)
        if mask is not None:
            self.op.ignores(index)  # no number in it adds to a value
            self.op.freeze(mask[-1], KERNEL)
            self.op.broadcast([mask[:-1]], (self.batch, self.heads, self.rows))

    def positions(self, *inputs: int) -> None:
        """State that operands count or pick positions, or are numbers for all of them."""
        for axes in map(self.op.input, inputs):
            if axes is not None:
                self.op.freeze((*axes, self.batch, self.rows), KERNEL)

    def cache(self, past: int, present: int) -> None:
        """State what the caches of keys and values are made of: two inputs from `past` on, two outputs alike."""
        for first, caches in ((past, self.op.input), (present, self.op.output)):
            for axes, width in ((caches(first), self.width), (caches(first + 1), self.value)):
                if axes is not None:
                    self.op.freeze(axes[2], KERNEL)
                    self.op.unify_all((*axes[:2], axes[3]), (self.batch, self.group, width))

    def results(self, scores: int) -> None:
        """State what the result is made of, and the scores where the node returns them."""
        result, table = self.op.output(), self.op.output(scores)
        if result is not None:
            self.op.unify_all(result, _laid_out(result, self.batch, self.heads, self.rows, self.value))
        if table is not None:
            self.op.freeze(table[3], KERNEL)
            self.op.unify_all(table[:3], (self.batch, self.heads, self.rows))
            self.op.only_copies(self.heads, "returns its scores")
        self.op.only_copies(self.rows, "averages values for each unit")  # for a query of zeros too
        self.op.pointwise("zero" if table is None else "any")

    def scores(self) -> None:
        """State that the scores sum over the width, which the queries (the first input) weigh."""
        scale = self.op.attrs.get("scale")
        if scale is None or (self.op.domain and not scale):  # com.microsoft writes 0 for the default
            self.op.default("scale", self.width.size**-0.5, self.width)
        query = self.op.input(0)
        if query is not None:
            self.op.contract(self.width, [(0, len(query) - 1)])


def _width(axes: Axes, heads: int) -> int:
    """Return the size of one head of (b s (h d)), (b h s d) or (b s h n d)."""
    return axes[2].size // heads if len(axes) == 3 else axes[-1].size


def _laid_out(axes: Axes, batch: Axis, heads: Axis, positions: Axis, width: Axis) -> Axes:
    if len(axes) == 3:
        return batch, positions, Product((heads, width))
    return batch, heads, positions, width


def _end_to_end(heads: Axis, group: Axis, width: Axis, value: Axis) -> Axis:
    return Concat((Product((heads, width)), Product((group, width)), Product((group, value))))


# --- Rotation of pairs -----------------------------------------------------------------------------------------


@rule("RotaryEmbedding", since=23)
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(op: Op) -> None:
    """Rotate pairs of units by the angle of their position: pairs grow whole, with their columns of the caches."""
    source, result = op.known(0), op.result()
    first = 2 if op.domain else 1  # com.microsoft has the positions before the caches
    cos, sin = op.known(first), op.known(first + 1)
    dim = int(op.attrs.get("rotary_embedding_dim", 0))
    given = int(op.attrs.get("num_heads", 0))
    count = given or source[2].size // (2 * cos[-1].size)
    width = _width(source, count)
    op.unify_all(source, result)
    op.freeze((source[0], source[2 if len(source) == 4 else 1], *(op.input(1 if op.domain else 3) or ())), KERNEL)
    if 2 * cos[-1].size != (dim or width):
        op.freeze((*source, *cos, *sin), "rotates by a cache that is not half as wide")
        return
    turned = _rotated(op, width, cos, sin, op.attrs.get("interleaved", 0))
    heads = source[1] if len(source) == 4 else Dim(count)
    op.unify(source[-1], turned if len(source) == 4 else Product((heads, turned)))
    if dim:
        op.attribute("rotary_embedding_dim", cos[-1], cos[-1])
    if given:
        op.attribute("num_heads", heads)
    op.scales(first, first + 1)
    op.pointwise("zero")


def _rotated(op: Op, width: int, cos: Axes | None, sin: Axes | None, interleaved: int) -> Axis:
    """Return a head's width as pairs, half-split or interleaved, and the rest that is not rotated."""
    caches = [cache for cache in (cos, sin) if cache is not None]
    pairs, two = caches[0][-1], Dim(2, "rotates pairs")
    for cache in caches:
        op.unify(cache[-1], pairs)
        op.freeze(cache[:-1], KERNEL)
    turned = Product((pairs, two) if interleaved else (two, pairs))
    return turned if turned.size == width else Concat((turned, Dim(width - turned.size)))


# --- Types of the outputs --------------------------------------------------------------------------------------


@type_function("MultiHeadAttention", domain=MICROSOFT)
def _typed_multi_head(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    query, key, value, _, _, _, past = [*types, *[None] * 7][:7]
    heads = attrs["num_heads"]
    assert query is not None
    dtype, (batch, rows, *_) = query
    width = query[1][-1] // (heads if len(query[1]) == 3 else 1)
    keys = (key or query)[1]
    columns = keys[2] if len(keys) == 4 else keys[1]
    wide = width if value is None else value[1][2] // heads if len(value[1]) == 3 else value[1][3]
    total = columns + (past[1][2] if past else 0)
    caches = [(dtype, (batch, heads, total, size)) for size in (width, wide)]
    return [(dtype, (batch, rows, heads * wide)), *caches, (dtype, (batch, heads, rows, total))]


@type_function("GroupQueryAttention", domain=MICROSOFT)
def _typed_group_query(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    query, key, _, past, *_ = types
    heads, groups = attrs["num_heads"], attrs["kv_num_heads"]
    assert query is not None
    dtype, (batch, rows, hidden) = query
    width = hidden // (heads if key else heads + 2 * groups)
    total = rows if past is None else past[1][2] + rows
    if len(values) > 6 and values[6] is not None:
        total = max(int(values[6].reshape(-1)[0]), past[1][2] if past else 0)
    cache = dtype, (batch, groups, total, width)
    return [(dtype, (batch, rows, heads * width)), cache, cache, (dtype, (batch, heads, rows, total))]


@type_function("Attention", domain=MICROSOFT)
def _typed_self_attention(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    source, weights, _, _, past = [*types, *[None] * 3][:5]
    assert source is not None
    assert weights is not None
    dtype, (batch, rows, _) = source
    hidden = (attrs.get("qkv_hidden_sizes") or [weights[1][1] // 3])[-1]
    total = rows + (past[1][3] if past else 0)
    heads = attrs["num_heads"]
    return [(dtype, (batch, rows, hidden)), (dtype, (2, batch, heads, total, hidden // heads))]


type_function("RotaryEmbedding", domain=MICROSOFT)(typed_as_input)
