"""A dense teacher fills mixtures of experts: each expert becomes a copy, exactly where gates sum to 1."""

import numpy as np
import pytest
from graphs import assert_close, net, run, weights, weighty
from moe import DISPATCHES, LINEAR, LOOKED_UP, NORMED, ROUTERS, C, D, E, H, T, constants, feeds, moe

from onnx_net2net import transfer
from onnx_net2net.operations.transfer.transfer import proof

NORMALISED = [name for name in ROUTERS if name not in ("softmax, top-k", "tokens compared", "sparse mixer")]
FORMS = [(router, LOOKED_UP) for router in NORMALISED] + [
    ("softmax, top-k, normed", dispatch) for dispatch in DISPATCHES.values() if dispatch is not LOOKED_UP
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def dense(block: str = "", width: int = D, hidden: int = H):
    """The network of `moe` with one block in the place of its experts."""
    block = block or "hidden = MatMul(x, up) a = Tanh(hidden) e0 = MatMul(a, down) m = Add(e0, shift)"
    text = (
        f"(float[{T}, 6] inputs) => (float[{T}, {C}] y) {{ z = MatMul(inputs, first) x = Tanh(z) {block} "
        "r = Add(x, m) y = MatMul(r, head) }"
    )
    known = {
        "first": draw(6, width), "up": draw(width, hidden), "down": draw(hidden, width), "shift": draw(width),
        "gate": draw(width, hidden) * 2, "gate_t": draw(hidden, width), "gate_bias": draw(hidden),
        "up_bias": draw(hidden) * 2, "head": draw(width, C),
    }  # fmt: skip
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return net(text, **{name: value for name, value in known.items() if name in words})


def assert_filled(teacher, target):
    filled = transfer(teacher, target)
    assert not filled.obstacles, [str(obstacle) for obstacle in filled.obstacles]
    student = weighty(filled.student)
    for seed in range(3):
        assert_close(run(student, feeds(seed))[0], run(teacher, feeds(seed))[0], "filled", 1e-5)
    return filled


@pytest.mark.parametrize("size", [(D, H), (D - 2, H - 3)], ids=["as large", "smaller"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_every_expert_becomes_a_copy_and_the_router_keeps_its_values(form, size):
    router, dispatch = form
    target = moe(ROUTERS[router], dispatch)
    filled = assert_filled(dense("", *size), target)
    before, after = weights(target), weights(filled.student)
    assert np.array_equal(before["router"], after["router"])
    for name in ("up", "down", "shift"):
        assert not np.array_equal(before[name], after[name])
        assert (after[name] == after[name][:1]).all()
    origins = {source.target: source.origin for source in filled.sources}
    assert (origins["router"], origins["up"]) == ("kept", "teacher")


@pytest.mark.parametrize("router", ["softmax, top-k", "tokens compared", "sparse mixer"])
def test_gates_that_do_not_sum_to_one_are_named(router):
    filled = transfer(dense(), moe(ROUTERS[router], LOOKED_UP))
    assert any("do not sum to 1" in obstacle.reason for obstacle in filled.obstacles)
    assert not proof(filled)[0].equivalent


JOINT = {
    "split": "g0, u0 = Split<axis=-1>(b, halves)",
    "slices": "u0 = Slice(b, middle, end, axis) g0 = Slice(b, start, middle, axis)",
    "value first": "u0, g0 = Split<axis=-1>(b, halves)",
}


def gated(cut: str, experts: int = E):
    """A mixture whose experts have gate and value in one weight."""
    dispatch = f"""i2 = Unsqueeze(i, last) w0 = GatherND(joint, i2) s0 = GatherND(joint_bias, i2)
        d0 = GatherND(down, i2) h0 = Einsum<equation="td,tkdh->tkh">(x, w0) b = Add(h0, s0) {cut} a0 = Sigmoid(g0)
        h1 = Mul(a0, u0) e = Einsum<equation="tkh,tkhd->tkd">(h1, d0) gu = Unsqueeze(g, last) w8 = Mul(e, gu)
        m = ReduceSum<keepdims=0>(w8, one) """
    text = (
        f"(float[{T}, 6] inputs) => (float[{T}, {C}] y) {{ z = MatMul(inputs, first) x = Tanh(z) "
        f"{ROUTERS['softmax, top-k, normed']} {dispatch} r = Add(x, m) y = MatMul(r, head) }}"
    )
    whole = {"halves": (H, H), "start": (0,), "middle": (H,), "end": (2 * H,), "axis": (2,)}
    known = constants() | {name: np.array(values, np.int64) for name, values in whole.items()}
    known |= {"joint": draw(experts, D, 2 * H), "joint_bias": draw(experts, 2 * H)}
    return net(text, **{name: value for name, value in known.items() if name in text})


@pytest.mark.parametrize("cut", JOINT)
@pytest.mark.parametrize(
    "block",
    [
        "g0 = MatMul(x, gate) gb = Add(g0, gate_bias) s = Sigmoid(gb) u0 = MatMul(x, up) ub = Add(u0, up_bias) "
        "h = Mul(s, ub) m = MatMul(h, down)",
        "u0 = Gemm(x, up, up_bias) g0 = Gemm<transB=1>(x, gate_t, gate_bias) s = Sigmoid(g0) h = Mul(u0, s) "
        "m = MatMul(h, down)",
        "g0 = MatMul(x, gate) s = Sigmoid(g0) u0 = MatMul(x, up) h = Mul(s, u0) m = MatMul(h, down)",
    ],
)
def test_gate_and_value_are_joined_in_the_order_of_the_target(cut, block):
    assert_filled(dense(block), gated(JOINT[cut]))


def test_a_mixture_fills_a_mixture_as_before():
    form = f"{LINEAR} p = Softmax<axis=-1>(l) v, i = TopK<axis=-1>(p, k) {NORMED}", DISPATCHES["scattered"]
    teacher = moe(*form)
    target = moe(*form, **{name: draw(*constants()[name].shape) for name in ("up", "down", "shift")})
    filled = assert_filled(teacher, target)
    assert np.array_equal(weights(filled.student)["up"], constants()["up"])
