"""Attention as one operator: heads and widths grow exactly, in onnxruntime; what fixes them is said."""

from __future__ import annotations

from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from test_contrib import FLOAT, Fed, check_every_dim, hold, parse

ROWS: list[Any] = []


def row(kind: str, *operands: Any, free: set[int], domain: str = "com.microsoft", opset: int = 23,
        outputs: str = "y", **attrs: Any) -> None:  # fmt: skip
    given = " ".join(str(o.array.shape if isinstance(o, Fed) else getattr(o, "shape", o)) for o in operands)
    extras = " ".join(f"{key}={value}" for key, value in attrs.items())
    options = {"domain": domain, "opset": opset, "outputs": outputs, **attrs}
    ROWS.append(pytest.param(kind, operands, free, options, id=f"{domain}{opset} {kind} {given} {extras}"))


# Sizes are distinct: batch 2, heads 3 (of keys) times 2, queries 5, keys 7, width 4 or 11, values 13.
# ai.onnx: a scale that follows the width is written down when that grows.
row("Attention", (2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), free={2, 3, 5, 11, 13}, domain="")
row("Attention", (2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), free={2, 3, 5, 11, 13}, domain="", scale=0.3)
row("Attention", (2, 5, 33), (2, 7, 33), (2, 7, 39), free={2, 3, 5, 11, 13}, domain="", scale=0.3, q_num_heads=3,
    kv_num_heads=3)  # fmt: skip
row("Attention", (17, 12, 5, 11), (17, 3, 7, 11), (17, 3, 7, 13), free={17, 3, 4, 5, 11, 13}, domain="", scale=0.3)
row("Attention", (2, 5, 132), (2, 7, 33), (2, 7, 39), free={2, 3, 4, 5, 11, 13}, domain="", scale=0.3, softcap=2.0,
    q_num_heads=12, kv_num_heads=3)  # fmt: skip
row("Attention", (2, 5, 33), (2, 7, 11), (2, 7, 13), free={2, 3, 5, 11, 13}, domain="", scale=0.3, q_num_heads=3,
    kv_num_heads=1)  # fmt: skip
row("Attention", (2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), (2, 3, 5, 7), free={2, 3, 5, 11, 13}, domain="",
    scale=0.3)  # fmt: skip
row("Attention", (2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), (3, 5, 7), free={2, 3, 5, 11, 13}, domain="", scale=0.3)
row("Attention", (2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), (2, 1, 5, 7), free={2, 3, 5, 11, 13}, domain="",
    scale=0.3, outputs="y - - scores")  # fmt: skip
row("Attention", (2, 3, 5, 11), (2, 3, 5, 11), (2, 3, 5, 13), free={2, 3, 11, 13}, domain="", scale=0.3, is_causal=1)
row("Attention", (2, 12, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13), None, (2, 3, 6, 11), (2, 3, 6, 13),
    free={2, 3, 4, 5, 11, 13}, domain="", scale=0.3, outputs="y k v")  # fmt: skip

# Pairs are rotated together: they are copied with their columns of the caches.
POSITIONS = Fed(np.array([[0, 3, 1, 2, 4], [1, 2, 3, 4, 5]]))
for _interleaved in (0, 1):
    row(
        "RotaryEmbedding", (2, 3, 5, 22), (8, 11), (8, 11), POSITIONS, free={3, 11}, domain="", interleaved=_interleaved
    )
    row("RotaryEmbedding", (2, 5, 66), (8, 11), (8, 11), POSITIONS, free={3, 11}, domain="", num_heads=3,
        interleaved=_interleaved)  # fmt: skip
    row("RotaryEmbedding", (2, 5, 51), (8, 7), (8, 7), POSITIONS, free={7, 37}, domain="", num_heads=1,
        rotary_embedding_dim=14, interleaved=_interleaved)  # fmt: skip
    row("RotaryEmbedding", (2, 5, 66), POSITIONS, (8, 11), (8, 11), free={3, 11}, interleaved=_interleaved)
    row("RotaryEmbedding", (2, 3, 5, 22), POSITIONS, (8, 11), (8, 11), free={3, 11}, interleaved=_interleaved)
    row("RotaryEmbedding", (2, 5, 93), POSITIONS, (8, 7), (8, 7), free={3, 7, 17}, num_heads=3, rotary_embedding_dim=14,
        interleaved=_interleaved)  # fmt: skip
row("RotaryEmbedding", (2, 5, 66), (2, 5, 11), (2, 5, 11), free={3, 11}, domain="", num_heads=3)

# com.microsoft: one operand for queries, keys and values fixes the width of the first two.
MASK = Fed(np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], np.int32))
row("Attention", (2, 5, 17), (17, 99), (99,), free={2, 3, 11, 17}, num_heads=3)
row("Attention", (2, 5, 17), (17, 105), (105,), free={2, 3, 13, 17}, num_heads=3, qkv_hidden_sizes=[33, 33, 39])
row("Attention", (2, 5, 17), (17, 99), (99,), MASK, free={3, 17, 11}, num_heads=3, scale=0.2)
row("Attention", (2, 5, 17), (17, 99), (99,), free={2, 3, 17, 11}, num_heads=3, unidirectional=1)
row("Attention", (2, 5, 17), (17, 99), (99,), None, None, (2, 3, 5, 5), free={2, 3, 17, 11}, num_heads=3)
row("Attention", (2, 5, 17), (17, 99), (99,), None, (2, 2, 3, 4, 11), free={2, 3, 17}, num_heads=3, outputs="y kv")

row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), free={2, 3, 5, 11, 13}, num_heads=3)
row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), free={2, 3, 5, 11, 13}, num_heads=3, scale=0.0)
row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), free={2, 3, 5, 11, 13}, num_heads=3, scale=0.2)
row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), (105,), free={2, 3, 5, 13}, num_heads=3, scale=0.2)
row("MultiHeadAttention", (2, 5, 33), (2, 3, 7, 11), (2, 3, 7, 11), free={2, 3, 5, 11}, num_heads=3, scale=0.2)
row("MultiHeadAttention", (2, 5, 33), (2, 5, 33), (2, 5, 33), None, MASK, free={3, 11}, num_heads=3, scale=0.2)
row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), None, None, (2, 3, 5, 7), free={2, 3, 5, 11, 13},
    num_heads=3, scale=0.2)  # fmt: skip
row("MultiHeadAttention", (2, 5, 33), (2, 7, 33), (2, 7, 39), None, None, (1, 1, 5, 7), free={2, 3, 5, 11, 13},
    num_heads=3, scale=0.2, outputs="y - - scores")  # fmt: skip
row("MultiHeadAttention", (2, 5, 33), (2, 5, 33), (2, 5, 33), None, None, None, (2, 3, 4, 11), (2, 3, 4, 11),
    free={2, 3, 11}, num_heads=3, scale=0.2, unidirectional=1, outputs="y k v")  # fmt: skip

LENGTHS, TOTAL = Fed(np.array([4, 4], np.int32)), np.array(5, np.int32)
GQA: dict[str, Any] = {"num_heads": 12, "kv_num_heads": 3, "outputs": "y k v"}
row("GroupQueryAttention", (2, 5, 96), (2, 5, 24), (2, 5, 24), None, None, LENGTHS, TOTAL, free={3, 4}, **GQA)
row("GroupQueryAttention", (2, 5, 144), None, None, None, None, LENGTHS, TOTAL, free={3, 4}, scale=0.2, **GQA)
row("GroupQueryAttention", (2, 1, 96), (2, 1, 24), (2, 1, 24), (2, 3, 4, 8), (2, 3, 4, 8), LENGTHS, TOTAL, free={3, 4},
    **GQA)  # fmt: skip
row("GroupQueryAttention", (2, 5, 96), (2, 5, 24), (2, 5, 24), None, None, LENGTHS, TOTAL, None, None, None,
    (2, 12, 5, 5), (12,), free={3, 4}, **GQA)  # fmt: skip
for _interleaved in (0, 1):
    row("GroupQueryAttention", (2, 5, 192), (2, 5, 48), (2, 5, 48), None, None, LENGTHS, TOTAL, (9, 8), (9, 8),
        free={3, 4}, do_rotary=1, rotary_interleaved=_interleaved, **GQA)  # fmt: skip


@pytest.mark.parametrize(("kind", "operands", "free", "options"), ROWS)
def test_a_grown_operator_computes_grown_outputs(
    kind: str, operands: tuple[Any, ...], free: set[int], options: dict[str, Any]
) -> None:
    if kind == "Attention" and not options["domain"]:
        heads = (options.get(name, o[1]) for name, o in zip(("q_num_heads", "kv_num_heads"), operands, strict=False))
        graphs.needs(len(set(heads)) == 1 or graphs.has_grouped_heads(), "attention of grouped heads")
    hold(kind, operands, free, **options)


def test_heads_in_one_operand_grow_where_onnxruntime_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        (node,) = proto.graph.node
        held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer} | feeds
        query, *rest = (held[name] for name in node.input)
        if rest:  # (b t h 2 d)
            keys, values = rest[0][:, :, :, 0], rest[0][:, :, :, 1]
            query = query.reshape(*query.shape[:2], keys.shape[2], -1)
        else:  # (b s h 3 d)
            query, keys, values = (query[:, :, :, part] for part in range(3))
        scores = np.einsum("bshd,bthd->bhst", query, keys) * 0.2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        result = np.einsum("bhst,bthd->bshd", weights, values)
        return [result.reshape(*result.shape[:2], -1).astype(FLOAT)]

    monkeypatch.setattr(graphs, "run", evaluate)
    options = {"domain": "com.microsoft", "opset": 23, "outputs": "y", "num_heads": 3, "scale": 0.2}
    hold("MultiHeadAttention", ((2, 5, 3, 3, 11),), {2, 3}, **options)
    hold("MultiHeadAttention", ((2, 5, 33), (2, 7, 3, 2, 11)), {2, 3, 5}, **options)


# --- In a graph --------------------------------------------------------------------------------------------------

GRAPHS = {
    "Attention of ai.onnx": """
        n = RMSNormalization(h, gain)
        q0 = MatMul(n, wq) k0 = MatMul(n, wk) v0 = MatMul(n, wv)
        q = RotaryEmbedding<num_heads = 4>(q0, cos, sin, positions)
        k = RotaryEmbedding<num_heads = 2>(k0, cos, sin, positions)
        a = Attention<q_num_heads = 4, kv_num_heads = 2, scale = 0.3, is_causal = 1>(q, k, v0)
    """,
    "Attention of com.microsoft": """
        n = LayerNormalization(h, gain, bias)
        a = com.microsoft.Attention<num_heads = 4>(n, wqkv, bqkv)
    """,
    "MultiHeadAttention": """
        q = MatMul(h, wq) k = MatMul(h, wq2) v = MatMul(h, wq3)
        a = com.microsoft.MultiHeadAttention<num_heads = 4, scale = 0.3>(q, k, v)
    """,
    "MultiHeadAttention with a bias": """
        q = MatMul(h, wq) k = MatMul(h, wq2) v = MatMul(h, wq3)
        a = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, bqkv)
    """,
    "GroupQueryAttention": """
        q = MatMul(h, wq) k = MatMul(h, wk) v = MatMul(h, wv)
        a, kp, vp = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, do_rotary = 1>(
            q, k, v, , , lengths, total, cos, sin)
    """,
}
WEIGHTS = {
    "gain": (12,), "bias": (12,), "wq": (12, 64), "wq2": (12, 64), "wq3": (12, 64), "wk": (12, 32), "wv": (12, 32),
    "wqkv": (12, 192), "bqkv": (192,), "cos": (9, 8), "sin": (9, 8), "wo": (64, 12),
}  # fmt: skip
PLACES = {
    "positions": np.array([[0, 1, 2, 3, 4]] * 2), "lengths": np.array([4, 4], np.int32), "total": np.array(5, np.int32)
}  # fmt: skip


@pytest.mark.parametrize("body", GRAPHS.values(), ids=GRAPHS.keys())
def test_every_dim_around_an_attention_grows_exactly(body: str) -> None:
    if " Attention<" in body:
        graphs.needs(graphs.has_grouped_heads(), "attention of grouped heads")
    proto = parse(f"{body} p = MatMul(a, wo) r = Add(p, h)", 12, WEIGHTS, PLACES, opset=23)
    grown = check_every_dim(proto)
    assert grown >= 3, grown
