"""Hand-written mixtures of experts: routers and dispatches in the forms that exporters write."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
from graphs import net

Array = np.ndarray
T, D, H, E, K, C = 24, 10, 12, 4, 2, 7
"""Tokens, width, hidden units of an expert, experts, chosen experts, outputs."""

LINEAR = "l = Gemm<transB=1>(x, router) "
BIASED = "l = Gemm<transB=1>(x, router, bias) "

NORMED = "total = ReduceSum<keepdims=1>(v, last) g = Div(v, total) "

ROUTERS = {
    "softmax, top-k": f"{LINEAR} p = Softmax<axis=-1>(l) v, i = TopK<axis=-1>(p, k) g = Identity(v) ",
    "softmax, top-k, normed": f"{LINEAR} p = Softmax<axis=-1>(l) v, i = TopK<axis=-1>(p, k) {NORMED}",
    "top-k, softmax": f"{BIASED} v, i = TopK<axis=-1>(l, k) g = Softmax<axis=-1>(v) ",
    "half precision": f"{BIASED} lh = Cast<to=10>(l) lf = Cast<to=1>(lh) p = Softmax<axis=-1>(lf) "
    f"v, i = TopK<axis=-1>(p, k) {NORMED}",
    "temperature": f"{LINEAR} cold = Div(l, two) p = Softmax<axis=-1>(cold) v, i = TopK<axis=-1>(p, k) {NORMED}",
    "sigmoid": f"{LINEAR} p = Sigmoid(l) v, i = TopK<axis=-1>(p, k) {NORMED}",
    "sigmoid, bias": f"{LINEAR} p = Sigmoid(l) s = Add(p, bias) w, i = TopK<axis=-1>(s, k) "
    f"v = GatherElements<axis=1>(p, i) {NORMED}",
    "groups": f"{LINEAR} p = Sigmoid(l) s = Add(p, bias) grouped = Reshape(s, groups) "
    "best, b = TopK<axis=-1>(grouped, k) sums = ReduceSum<keepdims=0>(best, last) w1, gi = TopK<axis=-1>(sums, one) "
    "zeros = ConstantOfShape(tokens_by_groups) ones = ConstantOfShape<value = float[1] {1.0}>(tokens_by_one) "
    "marked = ScatterElements<axis=1>(zeros, gi, ones) wide = Unsqueeze(marked, last) "
    "spread = Expand(wide, groups) flat = Reshape(spread, flat_shape) mask = Cast<to=9>(flat) off = Not(mask) "
    "kept = Where(off, minus, s) w, i = TopK<axis=-1>(kept, k) v = GatherElements<axis=1>(p, i) " + NORMED,
    "tokens compared": f"{LINEAR} s = Softmax<axis=0>(l) v, i = TopK<axis=-1>(s, k) g = Identity(v) ",
    "sparse mixer": f"{LINEAR} best = ReduceMax<keepdims=1>(l, last) winner = ArgMax<axis=-1, keepdims=1>(l) "
    "size = Abs(l) factor = Max(size, best) apart = Sub(best, l) part = Div(apart, factor) far = Greater(part, two) "
    "near = Where(far, minus, l) p = Softmax<axis=-1>(near) v = GatherElements<axis=1>(p, winner) "
    "g = Concat<axis=1>(v, v) i = Concat<axis=1>(winner, winner) ",
}
"""From tokens `x` to gates `g` and places `i`, [T, K] each."""

TOP_1 = f"{LINEAR} p = Softmax<axis=-1>(l) g = ReduceMax<keepdims=1>(p, last) i = ArgMax<axis=-1, keepdims=1>(p) "

LOOKED_UP = """u = Gather<axis=0>(up, i) d = Gather<axis=0>(down, i) c = Gather<axis=0>(shift, i)
    h = Einsum<equation="td,tkdh->tkh">(x, u) a = Tanh(h) e = Einsum<equation="tkh,tkhd->tkd">(a, d) f = Add(e, c)
    gu = Unsqueeze(g, last) w8 = Mul(f, gu) m = ReduceSum<keepdims=0>(w8, one) """

LOOKED_UP_ND = LOOKED_UP.replace("u = Gather<axis=0>(up, i) d = Gather<axis=0>(down, i) c = Gather<axis=0>(shift, i)",
    "j = Unsqueeze(i, last) u = GatherND(up, j) d = GatherND(down, j) c = GatherND(shift, j)")  # fmt: skip

ALL = """hidden = Einsum<equation="td,edh->teh">(x, up) a = Tanh(hidden) e0 = Einsum<equation="teh,ehd->ted">(a, down)
    f = Add(e0, shift) """

DISPATCHES = {
    "looked up": LOOKED_UP,
    "looked up, GatherND": LOOKED_UP_ND,
    "scattered": """none = ConstantOfShape(flat_shape) scattered = ScatterElements<axis=1>(none, i, g) """
    f"""{ALL} m = Einsum<equation="ted,te->td">(f, scattered) """,
    "one hot": f"""marks = OneHot<axis=-1>(i, depth, off_on) gu = Unsqueeze(g, last) each = Mul(marks, gu)
        scattered = ReduceSum<keepdims=0>(each, one) {ALL} wide = Unsqueeze(scattered, last) by = Mul(f, wide)
        m = ReduceSum<keepdims=0>(by, one) """,
    "compared": f"""iu = Unsqueeze(i, last) same = Equal(iu, counted) marks = Cast<to=1>(same) gu = Unsqueeze(g, last)
        each = Mul(marks, gu) scattered = ReduceSum<keepdims=0>(each, one) {ALL}
        m = Einsum<equation="ted,te->td">(f, scattered) """,
    "gathered outputs": f"""{ALL} iu = Unsqueeze(i, last) ie = Expand(iu, by_width)
        picked = GatherElements<axis=1>(f, ie) gu = Unsqueeze(g, last) by = Mul(picked, gu)
        m = ReduceSum<keepdims=0>(by, one) """,
}
"""From places and gates to the sum `m` of what the chosen experts make, [T, D]."""


MODULES = {
    "masked": """same{e} = Equal(i, n{e}) marks{e} = Cast<to=1>(same{e}) each{e} = Mul(marks{e}, g)
        gate{e} = ReduceSum<keepdims=1>(each{e}, last) {expert} term{e} = Mul(out{e}, gate{e}) {add}""",
    "picked rows": """same{e} = Equal(i, n{e}) found{e} = NonZero(same{e}) places{e} = Transpose(found{e})
        rows{e} = Gather<axis=1>(places{e}, zero_row) x{e} = GatherND(x, rows{e}) {expert}
        v{e} = GatherND(g, places{e}) gate{e} = Unsqueeze(v{e}, last) term{e} = Mul(out{e}, gate{e})
        sum{e} = ScatterND<reduction="add">({before}, rows{e}, term{e})""",
}
"""The part of one expert where each is a module of its own; `sum` of the last one is what all make."""


def apart(kind: str, experts: int = E) -> str:
    """A dispatch of experts that are modules of their own."""
    text, before = "none = ConstantOfShape(by_token)", "none"
    for e in range(experts):
        source = f"x{e}" if kind == "picked rows" else "x"
        expert = f"h{e} = MatMul({source}, up{e}) a{e} = Tanh(h{e}) d{e} = MatMul(a{e}, down{e}) "
        expert += f"out{e} = Add(d{e}, shift{e})"
        text += " " + MODULES[kind].format(e=e, expert=expert, add=f"sum{e} = Add({before}, term{e})", before=before)
        before = f"sum{e}"
    return f"{text} m = Identity({before})"


def constants(top: int = K, width: int = D, hidden: int = H, experts: int = E, seed: int = 0) -> dict[str, Array]:
    """Weights at random, and the numbers that the texts use."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    def whole(*values: int) -> Array:
        return np.array(values, np.int64)

    return {
        "first": draw(6, width), "router": draw(experts, width), "bias": draw(experts),
        "up": draw(experts, width, hidden) / 3, "down": draw(experts, hidden, width), "shift": draw(experts, width),
        "head": draw(width, C), "k": whole(top), "one": whole(1), "last": whole(-1),
        "two": np.float32(2), "minus": np.float32(-np.inf), "groups": whole(T, 2, experts // 2),
        "tokens_by_groups": whole(T, 2), "tokens_by_one": whole(T, 1), "flat_shape": whole(T, experts),
        "by_token": whole(T, width), "zero_row": whole(0), **{f"n{e}": np.array(e) for e in range(experts)},
        **{f"{name}{e}": draw(*shape) / 2 for e in range(experts)
           for name, shape in (("up", (width, hidden)), ("down", (hidden, width)), ("shift", (width,)))},
        "depth": np.array(experts), "off_on": np.float32([0, 1]), "counted": np.arange(experts),
        "by_width": whole(T, top, width),
    }  # fmt: skip


def moe(router: str, dispatch: str, top: int = K, **changed: Array) -> onnx.ModelProto:
    """A layer, a mixture of experts beside it, and a head: [T, 6] -> [T, C]."""
    text = (
        f"(float[{T}, 6] inputs) => (float[{T}, {C}] y) {{ z = MatMul(inputs, first) x = Tanh(z) {router} {dispatch} "
        "r = Add(x, m) y = MatMul(r, head) }"
    )
    known = constants(top) | changed
    words = set(re.findall(r"\w+", text))
    return net(text, **{name: value for name, value in known.items() if name in words})


def feeds(seed: int = 1) -> Mapping[str, Array]:
    """Inputs of `moe`."""
    return {"inputs": np.random.default_rng(seed).normal(size=(T, 6)).astype(np.float32)}
