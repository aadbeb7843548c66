"""Who carries the division among copies where no weight is read by the sum itself, and the numbers of classes."""

import numpy as np
import pytest
from graphs import net, weights

from onnx_net2net import BadInputError, RefusedError, load, verify, widen
from onnx_net2net.analysis.multipliers import function_of
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of


def draw(*shape, seed=0):
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def grown(teacher, framework="torch", **options):
    """Widen exactly and without new nodes; return the sizes that changed and the widening."""
    widening = widen(teacher, framework=framework, **options)
    verify(teacher, widening.student).raise_if_different()
    before, after = ([node.op_type for node in load(model).proto.graph.node if node.op_type != "Constant"]
                     for model in (teacher, widening.student))  # fmt: skip
    assert before == after
    return {change.name: change.new for change in widening.changes if change.new != change.old}, widening


def reasons(widening):
    return " ".join(group.reason or "" for group in widening.fixed)


LINEAR = {
    "a vector that is multiplied on and summed over": (
        "h = MatMul(x, up) t = Tanh(h) m = Mul(t, att) e = ReduceSum<keepdims = 1>(m, last) g = Sigmoid(e) "
        "z = Mul(t, g) y = MatMul(z, down)", {"att": (8,)}, {"up": 12}),
    "two layers in front of a product": (
        "q = MatMul(x, up) k = MatMul(x, key) kb = Add(k, bias) kr = Relu(kb) t = Transpose<perm = [1, 0]>(kr) "
        "s = MatMul(q, t) p = Tanh(s) y = MatMul(p, x3)", {"key": (6, 8), "bias": (8,)}, {"up": 12}),
    "the one of two layers that nobody else reads": (
        "q = MatMul(x, up) n = Tanh(q) k = MatMul(x, key) m = Mul(n, k) e = ReduceSum<keepdims = 1>(m, last) "
        "z = Mul(n, e) y = MatMul(z, down)", {"key": (6, 8)}, {"up": 12}),
    "a part of what a layer makes": (
        "h = MatMul(x, fused) a, c = Split<axis = 1, num_outputs = 2>(h) s = Sigmoid(a) m = Mul(s, c) "
        "e = ReduceSum<keepdims = 1>(m, last) g = MatMul(s, down) y = Mul(g, e)", {"fused": (6, 16)}, {"fused": 12}),
    "a weight times a number": (
        "w = Mul(up, number) h = MatMul(x, w) r = Relu(h) v = Mul(down, number) y = MatMul(r, v)", {}, {"up": 12}),
    "a weight over its largest stretch u' W v": (
        "h = MatMul(x, up) r = Relu(h) wt = Transpose<perm = [1, 0]>(down) wv = MatMul(wt, right) s = MatMul(left, wv) "
        "v = Div(down, s) y = MatMul(r, v)", {"right": (8,), "left": (3,)}, {"up": 12}),
    "rows of a layer in front of a homogeneous function": (
        "q = MatMul(x, up) r = LeakyRelu(q) k = Sigmoid(q2) m = Mul(r, k) e = ReduceSum<keepdims = 1>(m, last) "
        "y = MatMul(e, one_row)", {"one_row": (1, 3)}, {"aside": 12}),
}  # fmt: skip


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("name", LINEAR)
def test_whatever_is_linear_carries_the_division(name, factor):
    body, shapes, sizes = LINEAR[name]
    body = body.replace("q2", "side") if "q2" in body else body
    if "side" in body:
        body = "side = MatMul(x, aside) " + body
        shapes = {**shapes, "aside": (6, 8)}
    if "x3" in body:
        body = "x3 = MatMul(x, out) " + body
        shapes = {**shapes, "out": (6, 3)}
    shapes = {"up": (6, 8), "down": (8, 3), **shapes}
    given = {key: draw(*shape, seed=len(key)) for key, shape in shapes.items() if key in body}
    given |= {"last": np.array([-1])} if "last" in body else {}
    given |= {"number": np.array(0.37, np.float32)} if "number" in body else {}
    teacher = net(f"(float[N, 6] x) => (float[N, 3] y) {{ {body} }}", **given)
    found, widening = grown(teacher, factor=factor)
    assert found == {key: int(size * factor / 1.5) for key, size in sizes.items()}
    assert "no weight of the class" not in reasons(widening)
    grown(teacher, framework=None, factor=factor)  # nor does plain widening need a node


def test_the_values_of_a_constant_node_carry_it_too():
    """Exporters leave them without a name."""
    values = ", ".join(map(str, draw(8, 3).ravel()))
    text = f"""(float[N, 6] x) => (float[N, 3] y) {{
        h = MatMul(x, up) r = Tanh(h) w = Constant<value = float[8, 3] {{ {values} }}>() y = MatMul(r, w) }}"""
    _, widening = grown(net(text, up=draw(6, 8)), framework=None, factor=2)
    assert widening.inserted == ()


def test_what_is_multiplied_on_keeps_its_precision():
    """Shares of half precision that are used as floats would be rounded."""
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) r = Relu(h) w = Cast<to = 1>(half) y = MatMul(r, w) }"""
    teacher = net(text, up=draw(6, 8), half=draw(8, 3).astype(np.float16))
    widening = widen(teacher, factor=1.5)
    verify(teacher, widening.student).raise_if_different()


def test_a_factor_that_both_operands_come_from_is_not_divided_twice():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) t = Tanh(h) m = Mul(t, t) e = ReduceSum<keepdims = 1>(m, last) z = Mul(t, e)
        y = MatMul(z, down) }"""
    teacher = net(text, up=draw(6, 8), down=draw(8, 3), last=np.array([-1]))
    with pytest.raises(RefusedError, match="no weight of the class could weigh copies"):
        widen(teacher, factor=1.5, framework="torch")
    verify(teacher, widen(teacher, factor=1.5).student).raise_if_different()


NORMED = {
    "v / |v| * g": "n = ReduceL2<keepdims = 1>(v, axes) u = Div(v, n) w = Mul(u, g)",
    "v * (g / |v|)": "n = ReduceL2<keepdims = 1>(v, axes) q = Div(g, n) w = Mul(v, q)",
    "g / sqrt(sum of squares) * v": "s = Mul(v, v) t = ReduceSum<keepdims = 1>(s, axes) n = Sqrt(t) q = Div(g, n) "
    "w = Mul(q, v)",
    "v * g * (1 / |v|)": "n = ReduceL2<keepdims = 1>(v, axes) o = Reciprocal(n) p = Mul(v, g) w = Mul(p, o)",
}


@pytest.mark.parametrize("framework", [None, "torch"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_a_gain_makes_up_for_the_norm_of_a_divided_weight(name, transposed, framework):
    """With copies that share v unevenly its length is another one, which depends on the values."""
    kind = "ConvTranspose" if transposed else "Conv"
    text = f"""(float[N, 6, 9] x) => (float[N, 3, L] y) {{
        h = Conv(x, up) r = Relu(h) {NORMED[name]} c = {kind}(r, w, bias) z = Relu(c) y = Conv(z, down) }}"""
    given = {"up": draw(8, 6, 1), "v": draw(8, 8, 2), "g": draw(8, 1, 1) + 1, "bias": draw(8), "down": draw(3, 8, 1),
             "axes": np.array([1, 2])}  # fmt: skip
    teacher = net(text, **given)
    found, widening = grown(teacher, framework=framework, factor=1.5)
    assert found == {"up": 12, "bias": 12} or sorted(found.values()) == [12, 12]
    values = weights(widening.student)
    lengths = [np.sqrt(np.square(array["v"]).sum((1, 2))) for array in (given, values)]
    assert values["v"].shape == (12, 12, 2)
    assert not np.allclose(lengths[1][:8], lengths[0])  # it has changed, and the gain with it


def test_a_normed_weight_whose_outputs_stay_gets_another_gain_too():
    text = f"""(float[N, 6, 9] x) => (float[N, 3, L] y) {{
        h = Conv(x, up) r = Relu(h) {NORMED["v / |v| * g"]} y = Conv(r, w) }}"""
    teacher = net(text, up=draw(8, 6, 1), v=draw(3, 8, 2), g=draw(3, 1, 1), axes=np.array([1, 2]))
    assert grown(teacher, factor=1.5)[0] == {"up": 12}


def test_a_normed_weight_without_a_gain_stays():
    text = """(float[N, 6, 9] x) => (float[N, 3, L] y) {
        h = Conv(x, up) r = Relu(h) n = ReduceL2<keepdims = 1>(v, axes) w = Div(v, n) y = Conv(r, w) }"""
    teacher = net(text, up=draw(8, 6, 1), v=draw(3, 8, 2), axes=np.array([1, 2]))
    with pytest.raises(RefusedError, match="takes a norm of weights over it, which no gain could make up for"):
        widen(teacher, factor=1.5, framework="torch")


# --- Numbers that a class may compute ------------------------------------------------------------------------


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


@pytest.mark.parametrize("others", ["", "k = MatMul(h, down) z = Add(s, k)"], ids=["alone", "read by another sum"])
@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_copies_get_equal_shares_in_front_of_a_sum_of_absolute_values(others, spread):
    text = f"""(float[N, 6] x) => (float[N, K] y) {{ h = MatMul(x, up) s = ReduceL1<keepdims = 1>(h, last) {others}
        y = MatMul({"z" if others else "s"}, out) }}"""
    drawn = {"up": draw(6, 8), "down": draw(8, 5, seed=1), "out": draw(5 if others else 1, 3, seed=2)}
    teacher = net(text, last=np.array([-1]), **(drawn if others else {**drawn, "down": draw(1)}))
    for factor in (1.37, 2.0):
        student = widen(teacher, sizes={"up": int(8 * factor)}, spread=spread).student
        verify(teacher, student).raise_if_different()


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
