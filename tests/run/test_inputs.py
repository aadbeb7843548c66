"""Inputs: ids stay in their tables, masks stay masks, sizes are tried, the user's own files are checked."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_net2net.errors import BadInputError
from onnx_net2net.run.inputs import accepted, bindings, draw, input_specs, read_npz

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


def model(text, **weights):
    proto = parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return proto


def samples(proto, binding=None, count=20):
    specs = input_specs(proto)
    rng = np.random.default_rng(0)
    binding = next(bindings(specs)) if binding is None else binding
    return [draw(specs, binding, rng) for _ in range(count)]


def values(proto, name, **binding):
    return np.stack([feeds[name] for feeds in samples(proto, binding or None)])


TABLE = np.zeros((7, 4), np.float32)


@pytest.mark.parametrize(
    ("body", "highest"),
    [
        ("y = Gather(table, x)", 6),
        ("c = Cast<to=6>(x) s = Slice(c, zero, one) y = Gather(table, s)", 6),
        ("u = Unsqueeze(x, zero) i = Identity(u) y = Gather<axis=1>(table, i)", 3),
        ("t = Transpose<perm=[1,0]>(table) y = Gather(t, x)", 3),
        ("o = Add(x, two) y = Gather(table, o)", 4),
        ("a = Gather(table, x) b = Gather(small, x) y = Concat<axis=-1>(a, b)", 2),
        ("n = Add(x, seven) l = Less(x, zero) w = Where(l, n, x) y = Gather(table, w)", 6),  # negative indices
        ("y = OneHot(x, five, pair)", 4),
        ("u = Unsqueeze(x, minus) y = GatherND(table, u)", 3),  # it may be indexing either axis
        ("y = Gather(table, x) z = Equal(x, two)", 6),
    ],
)
def test_ids_stay_inside_the_table(body, highest):
    constants = {"zero": [0], "one": [1], "two": [2], "seven": [7], "five": [5], "minus": [-1]}
    weights = {name: np.array(value, np.int64) for name, value in constants.items()}
    proto = model(
        f"g (int64[9] x) => (float[?] y) {{ {body} }}",
        table=TABLE,
        small=np.zeros((3, 4), np.float32),
        pair=np.zeros(2, np.float32),
        **weights,
    )
    drawn = values(proto, "x")
    assert drawn.dtype == np.int64
    assert drawn.min() == 0
    assert drawn.max() == highest


@pytest.mark.parametrize(("size", "different"), [(3, True), (7, True), (8, False)])
def test_ids_are_all_different_where_there_are_enough(size, different):
    proto = model(f"g (int64[{size}] x) => (float[{size}, 4] y) {{ y = Gather(table, x) }}", table=TABLE)
    assert all((len(set(drawn)) == size) == different for drawn in values(proto, "x").tolist())


def test_ids_are_followed_into_bodies_and_functions():
    proto = model(
        """g (int64[9] x, bool b) => (float[9, 4] y) {
          y = If (b) <then_branch = t () => (float[9, 4] p) { p = Gather(table, x) },
                      else_branch = e () => (float[9, 4] q) { i = Identity(x) q = Gather(table, i) }>
        }""",
        table=TABLE,
    )
    assert values(proto, "x").max() == 6
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (int64[9] x) => (float[9, 4] y) <float[7, 4] table> { y = own.look (table, x) }
        <domain: "own", opset_import: ["" : 17]> look (t, i) => (o) { o = Gather(t, i) }"""
    proto = parser.parse_model(text)
    assert values(proto, "x").max() == 6


def test_ids_given_as_floats():
    drawn = values(
        model("g (float[9] x) => (float[9, 4] y) { i = Cast<to=7>(x) y = Gather(table, i) }", table=TABLE), "x"
    )
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == set(range(7))


@pytest.mark.parametrize("kind", ["int64", "float", "bool"])
def test_masks_are_runs_of_ones(kind):
    drawn = values(model(f"g ({kind}[3, 8] attention_mask) => (float[3, 8] y) {{ y = Cast<to=1>(attention_mask) }}"),
                   "attention_mask")  # fmt: skip
    assert drawn[..., 0].all()
    assert (np.diff(drawn.astype(int), axis=-1) <= 0).all()
    assert not drawn.all()


def test_integers_used_as_masks_and_flags():
    proto = model("g (int64[3, 8] a, bool[3, 8] b, int64 c) => (bool[3, 8] y) { m = Equal(a, one) y = And(m, b) }",
                  one=np.array(1, np.int64))  # fmt: skip
    for feeds in samples(proto):
        assert feeds["a"][:, 0].all()
        assert feeds["b"].any()
        assert feeds["c"].shape == ()


def test_lengths_and_counts():
    weights = {"w": np.zeros((1, 4, 2), np.float32), "r": np.zeros((1, 4, 4), np.float32)}
    proto = model("g (float[T, N, 2] x, int32[N] n) => (float[T, 1, N, 4] y) { y = RNN<hidden_size=4>(x, w, r, , n) }",
                  **weights)  # fmt: skip
    drawn = values(proto, "n", T=6, N=3)
    assert (drawn.min(), drawn.max()) == (1, 6)
    proto = model("g (float[6] x, int64 k) => (float[?] y, int64[?] i) { u = Unsqueeze(k, z) y, i = TopK(x, u) }",
                  z=np.zeros(1, np.int64))  # fmt: skip
    assert values(proto, "k").min() == 1


def test_floats_have_both_signs_unless_a_root_is_taken():
    proto = model("g (float[50] x, float16[50] h, double[50] d) => (float[50] y) { y = Sqrt(x) }")
    feeds = samples(proto)[0]
    assert (feeds["x"] > 0).all()
    assert feeds["h"].min() < 0 < feeds["h"].max()
    assert [feeds[name].dtype for name in "xhd"] == [np.float32, np.float16, np.float64]


def test_other_types():
    proto = model(
        "g (uint8[1, 3, 8, 8] image, string[2] words, bfloat16[4] b) => (string[2] y) { y = Identity(words) }"
    )
    feeds = samples(proto)[0]
    assert feeds["image"].max() > 200
    assert feeds["words"].tolist() == ["a", "a"]
    assert feeds["b"].dtype == ml_dtypes.bfloat16


def test_initializers_among_the_inputs_are_no_inputs():
    proto = model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", w=np.zeros(2, np.float32))
    assert [spec.name for spec in input_specs(proto)] == ["x"]


def test_names_share_sizes_and_expressions_follow():
    names = ["x", "past", "mask"]
    shapes = [["batch", "seq"], ["batch", 2, "past_len"], ["batch", "past_len + seq"]]
    infos = [helper.make_tensor_value_info(*pair) for pair in zip(names, [TensorProto.FLOAT] * 3, shapes, strict=True)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos, [infos[0]])
    feeds = samples(helper.make_model(graph), {"batch": 2, "seq": 5, "past_len": 7})[0]
    assert [feeds[name].shape for name in names] == [(2, 5), (2, 2, 7), (2, 12)]


def test_nameless_axes_and_static_models():
    specs = input_specs(model("g (float[?, 3] x, float[?, ?] z) => (float[?] y) { y = Add(x, z) }"))
    assert specs[0].shape == ("x[0]", 3)
    first = next(bindings(specs))
    assert first["x[0]"] == first["z[0]"]  # both are batches
    assert list(bindings(input_specs(model("g (float[2] x) => (float[2] y) { y = Abs(x) }")))) == [{}]


def accept(proto, rule):
    def run(feeds):
        if not rule(feeds["x"].shape):
            raise RuntimeError("two\nlines")

    return accepted(input_specs(proto), run, np.random.default_rng(0))


IMAGE = "g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Abs(x) }"


def test_how_many_bindings_are_enough_may_be_told_after_a_run():
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 3] x) => (float[N, 3] y) {y = Relu(x)}'
    )
    runs = []
    found = accepted(input_specs(proto), runs.append, np.random.default_rng(0), wanted=lambda: 3 - len(runs) // 2)
    assert len(found) == len(runs) == 2


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (lambda s: True, 3),
        (lambda s: s[2] % 32 == s[3] % 32 == 0, 3),
        (lambda s: s[2] == s[3], 3),
        (lambda s: s[0] == 1 and s[2] > 40, 2),
        (lambda s: s[2:] == (224, 224), 3),
        (lambda s: s[0] == 8, 2),
    ],
)
def test_several_bindings_are_accepted(rule, count):
    found = accept(model(IMAGE), rule)
    assert len(found) >= count
    assert len({tuple(binding.values()) for binding in found}) == len(found)


def test_a_model_that_takes_anything_gets_different_batches_and_a_large_size():
    found = accept(model(IMAGE), lambda shape: True)
    assert {binding["N"] for binding in found} == {1, 2, 3}
    assert any(binding["H"] == 64 for binding in found)


def test_refusal_has_the_last_words_in_one_line():
    with pytest.raises(BadInputError, match=r"--data inputs.npz can give some.*two lines$"):
        accept(model(IMAGE), lambda shape: False)


def test_inputs_that_cannot_be_fed():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    bare = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    for info, text in ((sequence, "sequence"), (bare, "how many axes")):
        graph = helper.make_graph([helper.make_node("Identity", ["s"], ["y"])], "g", [info], [info])
        with pytest.raises(BadInputError, match=text):
            input_specs(helper.make_model(graph))


PAIR = "g (float[N, 3] x, bfloat16[2] b) => (float[N, 3] y) { y = Abs(x) }"


def test_npz(tmp_path):
    x, b = np.ones((5, 3), np.float32), np.array([1, 2], ml_dtypes.bfloat16)
    np.savez(tmp_path / "good.npz", x=x, b=b)
    feeds = read_npz(tmp_path / "good.npz", input_specs(model(PAIR)))
    np.testing.assert_array_equal(feeds["x"], x)
    np.testing.assert_array_equal(feeds["b"], b)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.ones((5, 3), np.float32)}, r"\['b', 'x'\]"),
        ({"x": np.ones((5, 3), np.float32), "b": np.ones(2, "V2"), "z": np.ones(1)}, "z"),
        ({"x": np.ones((5, 3)), "b": np.ones(2, "V2")}, "float64"),
        ({"x": np.ones((5, 4), np.float32), "b": np.ones(2, "V2")}, r"\(5, 4\)"),
        ({"x": np.ones(3, np.float32), "b": np.ones(2, "V2")}, r"\(3,\)"),
        ({"x": np.array([{}], object), "b": np.ones(2, "V2")}, "no npz of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, arrays, text):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadInputError, match=text) as caught:
        read_npz(tmp_path / "bad.npz", input_specs(model(PAIR)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04broken"])
def test_no_npz_at_all(tmp_path, content):
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match="no npz"):
        read_npz(path, input_specs(model(PAIR)))


def test_npy_is_no_npz(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(BadInputError, match="no npz"):
        read_npz(tmp_path / "one.npy", input_specs(onnx.ModelProto()))


@pytest.mark.parametrize(("numbers", "drawn"), [([16000], {16000, 16001}), ([8000, 16000], {8000, 16000})])
def test_a_mode_is_one_of_the_numbers_that_it_is_compared_with(numbers, drawn):
    constants = {f"c{number}": np.array(number, np.int64) for number in numbers}
    body = " ".join(f"e{name} = Equal(rate, {name}) y{name} = Cast<to = 1>(e{name})" for name in constants)
    proto = model(f"g (int64 rate) => (float y{next(iter(constants))}) {{ {body} }}", **constants)
    assert set(values(proto, "rate").tolist()) == drawn


def test_the_batch_of_a_state_has_no_name_that_would_tell():
    proto = model("g (float[?, ?] x, float[2, ?, 8] state) => (float y) { y = Identity(state) }")
    specs = input_specs(proto)

    def run(feeds):
        assert feeds["x"].shape[0] == feeds["state"].shape[1]
        assert feeds["x"].shape[1] >= 128

    assert accepted(specs, run, np.random.default_rng(0))
