"""Numbers that a class may compute from its sizes, and those that it must not."""

import numpy as np
import pytest
from classes import attention
from graphs import net, weights
from grown import draw, grown, reasons

from onnx_net2net import BadInputError, RefusedError, load, widen
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.multipliers import frozen_constants, function_of
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of


def lora(scale, width=8):
    """y = V relu(W x + B A x * scale)."""
    text = """(float[N, 6] x) => (float[N, 3] y) {
        b = Gemm<transB = 1>(x, base) a = Gemm<transB = 1>(x, lora_a) c = Gemm<transB = 1>(a, lora_b)
        e = Mul(c, scaling) f = Add(b, e) g = Relu(f) y = Gemm<transB = 1>(g, head) }"""
    return net(text, base=draw(width, 6), lora_a=draw(4, 6), lora_b=draw(width, 4), head=draw(3, width),
               scaling=np.array(scale, np.float32))  # fmt: skip


@pytest.mark.parametrize(("scale", "text"), [(3.5, "14 / 4"), (0.25, "1 / 4"), (1.5, "6 / 4"), (2.0, "sqrt(4)")])
def test_a_rank_over_which_a_class_may_divide_stays(scale, text):
    found, widening = grown(lora(scale), factor=1.5)
    assert found == {"base": 12}
    assert f"has {scale:g} = {text}, which a class" in reasons(widening)
    assert "--keep-numbers" in reasons(widening) or "computes anew" in reasons(widening)
    assert grown(lora(scale), factor=1.5, keep_numbers=True)[0] == {"base": 12, "lora_a": 6}


@pytest.mark.parametrize("number", [0.2, 0.4321])
def test_other_numbers_beside_what_grew_are_named(number):
    _, widening = grown(lora(number), factor=1.5)
    assert any("must not compute" in note and f"{number:g} (scaling)" in note for note in widening.notes)
    assert widening.numbers == (f"Mul 'e' by {number:g} (scaling)",)


def test_numbers_of_activations_are_neither_held_nor_named():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) d = Div(h, root) e = Erf(d) p = Add(e, one) m = Mul(h, p) g = Mul(m, half)
        y = MatMul(g, down) }"""
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    found, widening = grown(net(text, up=draw(6, 8), down=draw(8, 3), **numbers), factor=1.5)
    assert found == {"up": 12}
    assert not widening.numbers


def test_an_output_multiplier_holds_the_width_that_it_is_a_part_of():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) r = Relu(h) z = MatMul(r, mid) s = Relu(z) o = MatMul(s, down) y = Mul(o, number) }"""
    given = {"up": draw(6, 10), "mid": draw(10, 12), "down": draw(12, 3)}
    teacher = net(text, **given, number=np.float32(5 / 12))
    found, widening = grown(teacher, factor=1.5)
    assert found == {"up": 15}
    assert "5 / 12" in reasons(widening)


def test_one_gain_over_the_roots_of_several_sizes_is_a_rule():
    """Equalized learning rates: each weight is multiplied by gain / sqrt(inputs)."""
    text = """(float[N, 6] x) => (float[N, 3] y) {
        a = Mul(up, ca) h = MatMul(x, at) r = Relu(h) b = Mul(down, cb) y = MatMul(r, bt) }"""
    text = text.replace("h =", "at = Transpose<perm = [1, 0]>(a) h =").replace("y = M", "bt = Transpose(b) y = M")

    def teacher(*gains):
        numbers = {
            name: np.float32(gain / size**0.5) for name, gain, size in zip(("ca", "cb"), gains, (6, 8), strict=True)
        }
        return net(text, up=draw(8, 6), down=draw(3, 8), **numbers)

    with pytest.raises(RefusedError, match=r"= 1\.3 / sqrt\(8\), which a class may compute anew"):
        widen(teacher(1.3, 1.3), factor=1.5, framework="torch")
    assert grown(teacher(1.3, 1.3), factor=1.5, keep_numbers=True)[0] == {"up": 12}
    assert grown(teacher(1.3, 1.1), factor=1.5)[0] == {"up": 12}


@pytest.mark.parametrize(
    ("value", "size", "where", "text"),
    [(48**-0.5, 48, "own", "48 ** -0.5"), (1 / 48, 48, "own", "1 / 48"), (np.log(48), 48, "own", "log(48)"),
     (14 / 4, 4, "behind", "14 / 4"), (14 / 4, 4, "own", ""), (0.5, 8, "behind", "4 / 8"), (0.5, 8, "ahead", ""),
     (0.2, 40, "behind", ""), (1.0, 8, "behind", ""), ((2 / 48) ** 0.5, 48, "weights", "sqrt(2 / 48)"),
     ((2 / 48) ** 0.5, 48, "behind", ""), (0.044715, 48, "behind", ""), (1e-5, 48, "own", "")],
)  # fmt: skip
def test_simple_functions_of_a_size(value, size, where, text):
    assert function_of(float(np.float32(value)), size, where) == text


def test_the_record_says_that_numbers_were_kept(tmp_path):
    (tmp_path / "teacher.onnx").write_bytes(lora(3.5).SerializeToString())
    files = [str(tmp_path / name) for name in ("teacher.onnx", "student.onnx")]
    options = ["--factor", "1.5", "--for", "torch", "--keep-numbers"]
    assert main(["widen", files[0], "-o", files[1], *options]) == 0
    replay(files[0], steps_of(files[1]), tmp_path / "again.onnx")
    assert weights(load(tmp_path / "again.onnx"))["lora_a"].shape == (6, 6)
    with pytest.raises(BadInputError, match="--keep-numbers is about"):
        widen(files[0], factor=1.5, keep_numbers=True)


def test_a_scale_that_a_class_computes_is_found():
    found = list(frozen_constants(infer(load(attention(width=9)))))
    assert [(constant.axis.size, constant.power) for constant in found] == [(9, -0.5)]
    assert not list(frozen_constants(infer(load(attention(scale=0.3)))))
