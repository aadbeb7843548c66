"""Networks of one or two mixtures of experts: routers, dispatches and sizes by chance, and what to ask of `widen`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from graphs import net
from moe import BIASED, DISPATCHES, MODULES, NORMED, ROUTERS, TOP_1, C, T, apart, constants

Array = np.ndarray

FORMS = {
    **ROUTERS,
    "top-1": f"{TOP_1} ",
    "sigmoid, not divided": f"{BIASED} p = Sigmoid(l) g, i = TopK<axis=-1>(p, k) ",
    "bias, softmax, top-k": f"{BIASED} p = Softmax<axis=-1>(l) v, i = TopK<axis=-1>(p, k) {NORMED}",
}
GATED = "opened = Sigmoid(h) a = Mul(h, opened)"
"""In the place of Tanh: linear in a weight of the experts that their last layers read."""

FUSED = """m = com.microsoft.MoE<k=2, activation_type="relu", normalize_routing_weights=1>(x, l, up_t, none_, down_t)"""

_NAMES = r"(?:router|bias|up_t|down_t|none_|(?:up|down|shift)\d*|x)"


def routed(seed: int) -> tuple[onnx.ModelProto, tuple[str, ...], dict[str, Any]]:
    """Return a network, what it is made of, and options of `widen` that give its experts copies or parts."""
    made = _routed(seed, 3)
    return _routed(seed, 2) if {"groups", "sparse mixer"} & set(made[1]) else made  # which choose two


def _routed(seed: int, most: int) -> tuple[onnx.ModelProto, tuple[str, ...], dict[str, Any]]:
    """Return the same; experts are chosen up to so many at a time."""
    rng = np.random.default_rng(seed)
    width, hidden, experts = int(rng.integers(6, 11)), int(rng.choice([6, 12])), int(rng.choice([4, 6]))
    top, known, text, kinds = min(int(rng.choice([2, 2, 3])), most), {}, "z = MatMul(inputs, first) x = Tanh(z)", []
    for layer in range(int(rng.integers(1, 3))):
        router, dispatch = _drawn(rng)
        number = 1 if router == "top-1" else top
        kinds += [router, dispatch]
        own = constants(number, width, hidden, experts, int(rng.integers(1 << 30)))
        own |= {"up_t": own["up"].transpose(0, 2, 1), "down_t": own["down"].transpose(0, 2, 1)}
        own["none_"] = np.zeros((experts, hidden), np.float32)
        part = re.sub(r"\bwide\b", "broad", FORMS[router]) + _dispatched(dispatch, experts)
        if rng.random() < 0.5:
            part = part.replace("a = Tanh(h)", GATED)
        mark = f"_{layer}"
        text += f" {_renamed(part, mark)} r{mark} = Add(x{mark}, m{mark})".replace("x_0", "x")
        text += "" if layer else str(rng.choice([" x_1 = LayerNormalization<axis=-1>(r_0, gain)", " x_1 = Tanh(r_0)"]))
        for name, value in own.items():
            known[f"{name}{mark}"] = value
            known.setdefault(name, value)
    known["gain"] = np.ones(width, np.float32)
    whole = f"(float[{T}, 6] inputs) => (float[{T}, {C}] y) {{ {text} y = MatMul(r{mark}, head) }}"
    words = set(re.findall(r"\w+", whole))
    proto = net(whole, 18, imports=', "com.microsoft" : 1', **{n: v for n, v in known.items() if n in words})
    return proto, tuple(kinds), _asked(rng)


def _drawn(rng: np.random.Generator) -> tuple[str, str]:
    """Return a router and a dispatch that go together."""
    dispatch = str(rng.choice([*DISPATCHES, *DISPATCHES, *MODULES, "fused"]))
    routers = ["softmax, top-k, normed"] if dispatch == "fused" else list(FORMS)
    return str(rng.choice(routers)), dispatch


def _dispatched(dispatch: str, experts: int) -> str:
    return FUSED if dispatch == "fused" else DISPATCHES.get(dispatch) or apart(dispatch, experts)


def _renamed(text: str, mark: str) -> str:
    """Mark the tensors that a layer makes, and its weights."""
    made = {name for names in re.findall(r"((?:\w+, )*\w+) = ", text) for name in names.split(", ")}
    pattern = rf"\b(?:{'|'.join(sorted(made))}|{_NAMES})\b"
    quoted = re.split(r"""(<(?:[^>"]|"[^"]*")*>)""", text)  # attributes keep their names
    return "".join(part if place % 2 else re.sub(pattern, lambda found: found[0] + mark, part)
                   for place, part in enumerate(quoted))  # fmt: skip


def _asked(rng: np.random.Generator) -> dict[str, Any]:
    """Return options: experts get copies or parts, and other dims may grow at the same time."""
    how = str(rng.choice(["split", "split", "topk", "lift", "granular"]))
    sizes = ["2x", "3x"] if how in ("topk", "granular") else ["2x", "3x", "+1", "+3"]
    asked: dict[str, Any] = {"sizes": {"experts": str(rng.choice(sizes))}, "how": how}
    if rng.random() < 0.6:
        asked["factor"] = float(rng.choice([1.5, 2.0]))
        asked["map"] = str(rng.choice(["replicate", "replicate", "zero_in", "zero_out"]))
        asked["only"] = ["residual stream"] if how == "granular" else []
    return asked
