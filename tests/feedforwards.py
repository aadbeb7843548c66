"""Dense networks with feed-forward blocks, in the forms that exporters write."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from graphs import net

Array = np.ndarray
B, S, D, H, C = 2, 12, 8, 12, 5
"""Examples, positions, width, hidden units, outputs."""

BLOCKS = {
    "relu": "u = MatMul(x, up) ub = Add(u, up_bias) h = Relu(ub) d = MatMul(h, down) m = Add(d, down_bias)",
    "gelu": "u = MatMul(x, up) ub = Add(up_bias, u) s = Div(ub, root) e = Erf(s) e1 = Add(e, one) g = Mul(ub, e1) "
    "h = Mul(g, half) d = MatMul(h, down) m = Add(d, down_bias)",
    "gated": "g = MatMul(x, gate) s = Sigmoid(g) a = Mul(g, s) u = MatMul(x, up) h = Mul(a, u) m = MatMul(h, down)",
    "gate and value in one": "j = MatMul(x, joint) jb = Add(j, joint_bias) g, u = Split<axis=-1>(jb, parts) "
    "s = Tanh(g) h = Mul(s, u) m = MatMul(h, down)",
    "cut by slices": "j = MatMul(x, joint) g = Slice(j, start, middle, axis) u = Slice(j, middle, end, axis) "
    "s = Tanh(g) h = Mul(s, u) m = MatMul(h, down)",
    "slopes": "u = MatMul(x, up) h = PRelu(u, slopes) m = MatMul(h, down)",
    "rows": "xr = Reshape(x, rows) u = Gemm<transB=1, alpha=0.5>(xr, up_t, up_bias) h = Relu(u) hr = Reshape(h, wide) "
    "d = MatMul(hr, down) m = Add(d, down_bias)",
    "flattened": "xr = Flatten<axis=2>(x) u = MatMul(xr, up) h = Relu(u) hr = Reshape(h, wide) m = MatMul(hr, down)",
}
"""From `x` to `m`, [B, S, D] each."""


def constants() -> dict[str, Array]:
    """Weights at random, and the numbers that the texts use."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    def whole(*values: int) -> Array:
        return np.array(values, np.int64)

    return {
        "first": draw(6, D), "up": draw(D, H) / 3, "up_bias": draw(H), "gate": draw(D, H) / 3, "down": draw(H, D),
        "down_bias": draw(D), "joint": draw(D, 2 * H), "joint_bias": draw(2 * H), "slopes": draw(H), "up_t": draw(H, D),
        "head": draw(D, C), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32([0.5]),
        "parts": whole(H, H), "start": whole(0), "middle": whole(H), "end": whole(2 * H), "axis": whole(2),
        "rows": whole(-1, D), "wide": whole(B, S, H),
    }  # fmt: skip


def dense(block: str, opset: int = 18, **changed: Array) -> onnx.ModelProto:
    """A layer, a feed-forward block beside it, and a head: [B, S, 6] -> [B, S, C]."""
    text = (
        f"(float[{B}, {S}, 6] inputs) => (float[{B}, {S}, {C}] y) {{ z = MatMul(inputs, first) x = Tanh(z) "
        f"{BLOCKS.get(block, block)} r = Add(x, m) y = MatMul(r, head) }}"
    )
    known = constants() | changed
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return net(text, opset, **{name: value for name, value in known.items() if name in words})


def feeds(seed: int = 1) -> Mapping[str, Array]:
    """Inputs of `dense`."""
    return {"inputs": np.random.default_rng(seed).normal(size=(B, S, 6)).astype(np.float32)}
