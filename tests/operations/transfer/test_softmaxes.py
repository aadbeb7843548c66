"""Mixtures whose gates are a Softmax over all experts get more experts: copies share what one had."""

import numpy as np
import pytest
from graphs import net
from test_transfer import fill

GATES = "g = Gemm(x, gate, shift) p = Softmax<axis = 1>(g) u = Unsqueeze(p, two)"
BARE = "g = MatMul(x, gate) p = Softmax<axis = 1>(g) u = Unsqueeze(p, two)"
EXPERTS = """t = Unsqueeze(x, two) r = Transpose<perm = [2, 0, 1]>(t) h = MatMul(r, up) a = Relu(h) o = MatMul(a, down)
    e = Transpose<perm = [1, 0, 2]>(o) m = Mul(e, u)"""
SUM = "y = ReduceSum<keepdims = 0>(m, one)"


def mixture(seed, experts, gates=GATES, more="", outputs="float[N, 3] y"):
    rng = np.random.default_rng(seed)
    shapes = {"gate": (6, experts), "shift": (experts,), "up": (experts, 6, 5), "down": (experts, 5, 3)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if "shift" not in gates:
        del weights["shift"]
    text = f"(float[N, 6] x) => ({outputs}) {{ {gates} {EXPERTS} {more} {SUM} }}"
    return net(text, **weights, two=np.array([2]), one=np.array([1]))


@pytest.mark.parametrize("experts", [6, 8, 11])
def test_more_experts_share_by_the_bias_of_the_router(experts):
    result, verification, obstacles = fill(mixture(0, 4), mixture(1, experts))
    assert obstacles == []
    assert verification.equivalent
    shifts = [np.asarray(model.tensor(tensor).numpy()) for model in (result.teacher, result.student)
              for tensor in model.proto.graph.initializer if tensor.name == "shift"]  # fmt: skip
    copies = np.bincount(np.arange(experts) % 4)
    expected = np.log(copies) if np.ptp(copies) else np.zeros(4)
    np.testing.assert_allclose(shifts[0] - shifts[1][:4], expected, atol=1e-6)


def test_without_a_bias_all_experts_have_equally_many_copies():
    _, verification, obstacles = fill(mixture(0, 4, BARE), mixture(1, 8, BARE))
    assert (obstacles, verification.equivalent) == ([], True)
    _, _, obstacles = fill(mixture(0, 4, BARE), mixture(1, 6, BARE))
    assert any("4 units cannot grow to 6" in text for text in obstacles)


def test_gates_that_are_squared_cannot_be_parted():
    squared = GATES.replace("u = Unsqueeze(p, two)", "q = Mul(p, p) u = Unsqueeze(q, two)")
    _, _, obstacles = fill(mixture(0, 4, squared), mixture(1, 8, squared))
    assert obstacles


def test_gates_that_are_an_output_stay():
    shown = "float[N, 3] y, float[N, {}] p"
    _, _, obstacles = fill(mixture(0, 4, outputs=shown.format(4)), mixture(1, 8, outputs=shown.format(8)))
    assert obstacles
