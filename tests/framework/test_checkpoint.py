"""A grown state dict, put into the same class at other sizes, computes what the teacher computes.

A class is here a function from a state dict to a model: what an exporter makes of it, folding included.
"""

import json

import numpy as np
import onnx
import pytest
from carried import check, f32, linear, made, node
from graphs import build
from safetensors.numpy import load_file, save_file

from onnx_net2net import BadInputError, RefusedError, checkpoint, deepen, narrow, verify, widen
from onnx_net2net.cli.main import main

# --- Relations -----------------------------------------------------------------------------------------------


def plain(state):
    nodes = [
        node("Gemm", ["x", "fc1.weight", "fc1.bias"], "h", transB=1),
        node("Relu", ["h"], "r"),
        node("Gemm", ["r", "fc2.weight", "fc2.bias"], "y", transB=1),
    ]
    return build(nodes, {"x": f32(3, 5)}, ["y"], {name: state[name] for name in PLAIN})


PLAIN = {"fc1.weight": f32(8, 5), "fc1.bias": f32(8), "fc2.weight": f32(4, 8), "fc2.bias": f32(4)}


def test_the_same_names_and_layouts(tmp_path):
    relations, result = check(plain, PLAIN, tmp_path)
    assert set(relations.values()) == {"same"}
    assert result["fc1.weight"].new == (12, 5)


def test_values_are_the_students_own(tmp_path):
    _teacher, student, result = made(plain, PLAIN, tmp_path)
    ours = result.arrays()
    for tensor in onnx.load(student).graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), ours[tensor.name])


def transposed(state):
    nodes = [*linear("x", "onnx::MatMul_7", "fc1.bias", "h"), node("Relu", ["h"], "r"),
             *linear("r", "onnx::MatMul_8", "val_3", "y")]  # fmt: skip
    weights = {"onnx::MatMul_7": state["fc1.weight"].T, "onnx::MatMul_8": state["fc2.weight"].T,
               "fc1.bias": state["fc1.bias"], "val_3": state["fc2.bias"]}  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 5)}, ["y"], weights)


def test_transposed_and_renamed(tmp_path):
    relations, _ = check(transposed, PLAIN, tmp_path)
    assert relations == {"fc1.weight": "transposed", "fc1.bias": "same", "fc2.weight": "transposed",
                         "fc2.bias": "same"}  # fmt: skip


def reshaped(state):
    """A 1x1 convolution as a matrix, and a scale of channels with axes of size 1."""
    nodes = [*linear("x", "w", "b", "h"), node("Mul", ["h", "g"], "s"), node("Relu", ["s"], "r"),
             *linear("r", "v", "c", "y")]  # fmt: skip
    weights = {"w": state["conv1.weight"].reshape(state["conv1.weight"].shape[:2]).T, "b": state["conv1.bias"],
               "g": state["gamma"].reshape(1, 1, -1), "v": state["conv2.weight"][:, :, 0, 0].T,
               "c": state["conv2.bias"]}  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 5)}, ["y"], weights)


def test_reshaped(tmp_path):
    state = {"conv1.weight": f32(8, 5, 1, 1), "conv1.bias": f32(8), "gamma": f32(8), "conv2.weight": f32(4, 8, 1, 1),
             "conv2.bias": f32(4)}  # fmt: skip
    relations, _ = check(reshaped, state, tmp_path)
    assert relations["gamma"] == "reshaped"
    assert relations["conv1.weight"] == "transposed"


def heads_first(state):
    """Heads and their width are one axis in the class and two in the graph."""
    weight = state["proj.weight"].reshape(4, -1, 6)  # [heads, width, reads]
    nodes = [
        node("Unsqueeze", ["x", "one"], "u"),
        node("MatMul", ["u", "w"], "h"),
        node("Relu", ["h"], "r"),
        node("Transpose", ["r"], "t", perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "together"], "f"),
        node("MatMul", ["f", "v"], "y"),
    ]
    weights = {"one": np.array([1]), "w": weight.transpose(0, 2, 1), "v": state["out.weight"].T,
               "together": np.array([0, 0, -1])}  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 6)}, ["y"], weights, opset=18)


def test_one_axis_in_the_class_is_two_in_the_graph(tmp_path):
    state = {"proj.weight": f32(32, 6), "out.weight": f32(5, 32)}
    check(heads_first, state, tmp_path)


def fused(state):
    """Queries, keys and values that an optimizer joined, as one product that is cut again."""
    size = state["q.weight"].shape[0]
    nodes = [
        *linear("x", "qkv", "qkv_bias", "h"),
        node("Split", ["h", "sizes"], "q", axis=2),
        node("Mul", ["q", "k"], "qk"),
        node("Add", ["qk", "v"], "m"),
        *linear("m", "out", "out_bias", "y"),
    ]
    nodes[2].output.extend(["k", "v"])
    weights = {
        "qkv": np.concatenate([state[f"{p}.weight"] for p in "qkv"]).T,
        "qkv_bias": np.concatenate([state[f"{p}.bias"] for p in "qkv"]),
        "sizes": np.array([size] * 3), "out": state["out.weight"].T, "out_bias": state["out.bias"],
    }  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 5)}, ["y"], weights)


def test_joined_by_the_exporter(tmp_path):
    state = {f"{p}.{what}": f32(*shape) for p in "qkv" for what, shape in (("weight", (8, 5)), ("bias", (8,)))}
    state |= {"out.weight": f32(4, 8), "out.bias": f32(4)}
    relations, result = check(fused, state, tmp_path)
    assert {relations[f"{p}.{what}"] for p in "qkv" for what in ("weight", "bias")} == {"concatenated"}
    assert result["k.weight"].constants == ("qkv",)


def cut(state):
    """One projection of the class as three in the graph."""
    q, k, v = np.split(state["in_proj_weight"], 3)
    a, b, c = np.split(state["in_proj_bias"], 3)
    nodes = [
        *linear("x", "wq", "bq", "q"), *linear("x", "wk", "bk", "k"), *linear("x", "wv", "bv", "v"),
        node("Mul", ["q", "k"], "qk"), node("Add", ["qk", "v"], "m"), *linear("m", "out", "out_bias", "y"),
    ]  # fmt: skip
    weights = {"wq": q.T, "wk": k.T, "wv": v.T, "bq": a, "bk": b, "bv": c, "out": state["out.weight"].T,
               "out_bias": state["out.bias"]}  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 5)}, ["y"], weights)


def test_cut_by_the_exporter(tmp_path):
    state = {"in_proj_weight": f32(24, 5), "in_proj_bias": f32(24), "out.weight": f32(4, 8), "out.bias": f32(4)}
    relations, result = check(cut, state, tmp_path)
    assert relations["in_proj_weight"] == relations["in_proj_bias"] == "concatenated"
    assert result["in_proj_weight"].new == (36, 5)


GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # where ONNX's gates are among torch's


def recurrent(kind):
    def class_(state):
        order = GATES[kind]
        size = state["rnn.weight_hh_l0"].shape[1]

        def gates(array):
            return np.concatenate([np.split(array, len(order))[k] for k in order])

        def both(what):
            return np.stack([gates(state[f"rnn.{what}_l0{way}"]) for way in ("", "_reverse")])

        weights = {"W": both("weight_ih"), "R": both("weight_hh"),
                   "B": np.concatenate([both("bias_ih"), both("bias_hh")], axis=1),
                   "out": state["fc.weight"].T, "shape": np.array([0, 0, -1])}  # fmt: skip
        more = {"linear_before_reset": 1} if kind == "GRU" else {}
        nodes = [
            node(kind, ["x", "W", "R", "B"], "h", hidden_size=size, direction="bidirectional", **more),
            node("Transpose", ["h"], "t", perm=[0, 2, 1, 3]),
            node("Reshape", ["t", "shape"], "f"),
            node("MatMul", ["f", "out"], "y"),
        ]
        return build(nodes, {"x": f32(4, 2, 5)}, ["y"], weights)

    return class_


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gates_and_directions(tmp_path, kind):
    gates = len(GATES[kind])
    state = {"fc.weight": f32(3, 12)}
    for way in ("", "_reverse"):
        state |= {f"rnn.weight_ih_l0{way}": f32(gates * 6, 5), f"rnn.weight_hh_l0{way}": f32(gates * 6, 6)}
        state |= {f"rnn.bias_ih_l0{way}": f32(gates * 6), f"rnn.bias_hh_l0{way}": f32(gates * 6)}
    relations, result = check(recurrent(kind), state, tmp_path)
    assert relations["rnn.weight_hh_l0_reverse"] == "gate order"
    assert result["rnn.weight_hh_l0"].new == (gates * 9, 9)


def normalised(epsilon, transpose=False, renamed=True):
    """A convolution with a BatchNormalization behind it, folded as both exporters of torch do."""

    def class_(state):
        scale = state["bn.weight"] / np.sqrt(state["bn.running_var"] + np.float32(epsilon))
        along = (1, -1, 1, 1) if transpose else (-1, 1, 1, 1)
        kernel = state["conv.weight"] * scale.reshape(along)
        bias = (state["conv.bias"] - state["bn.running_mean"]) * scale + state["bn.bias"]
        names = ("onnx::Conv_9", "onnx::Conv_10") if renamed else ("conv.weight", "conv.weight_bias")
        nodes = [
            node("ConvTranspose" if transpose else "Conv", ["x", *names], "h"),
            node("Relu", ["h"], "r"),
            node("Conv", ["r", "head.weight", "head.bias"], "y"),
        ]
        weights = dict(zip(names, (kernel, bias), strict=True))
        weights |= {"head.weight": state["head.weight"], "head.bias": state["head.bias"]}
        return build(nodes, {"x": f32(2, 5, 6, 6)}, ["y"], weights)

    return class_


def with_norm(kernel):
    return {
        "conv.weight": f32(*kernel), "conv.bias": f32(8), "bn.weight": np.abs(f32(8)) + 0.1, "bn.bias": f32(8),
        "bn.running_mean": f32(8), "bn.running_var": np.abs(f32(8)) + 0.1,
        "bn.num_batches_tracked": np.array(7), "head.weight": f32(3, 8, 1, 1), "head.bias": f32(3),
    }  # fmt: skip


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
@pytest.mark.parametrize("renamed", [True, False])
def test_folded_normalisation(tmp_path, epsilon, renamed):
    state = with_norm((8, 5, 3, 3))
    relations, result = check(normalised(epsilon, renamed=renamed), state, tmp_path)
    folded = {name for name, relation in relations.items() if relation == "folded"}
    assert folded == {"conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    assert relations["bn.num_batches_tracked"] == "passed through"
    assert result["bn.running_var"].new == (12,)


def test_folded_behind_a_transposed_convolution(tmp_path):
    state = with_norm((5, 8, 3, 3))
    relations, _ = check(normalised(1e-5, transpose=True), state, tmp_path)
    assert relations["conv.weight"] == "folded"


def test_zero_scales_are_folded_too(tmp_path):
    state = with_norm((8, 5, 3, 3))
    state["bn.weight"][[1, 5]] = 0
    assert check(normalised(1e-5), state, tmp_path)[0]["conv.weight"] == "folded"


def test_the_norm_of_each_layer_is_found_among_equal_ones(tmp_path):
    """Statistics as they are before training tell nothing apart; the order of the entries does."""

    def class_(state):
        nodes, weights, x = [], {}, "x"
        for k in range(3):
            scale = state[f"bn{k}.weight"] / np.sqrt(state[f"bn{k}.running_var"] + np.float32(1e-5))
            weights[f"w{k}"] = state[f"conv{k}.weight"] * scale.reshape(-1, 1, 1, 1)
            weights[f"b{k}"] = state[f"bn{k}.bias"] - state[f"bn{k}.running_mean"] * scale
            nodes += [node("Conv", [x, f"w{k}", f"b{k}"], f"h{k}"), node("Relu", [f"h{k}"], f"r{k}")]
            x = f"r{k}"
        nodes.append(node("Conv", [x, "head.weight"], "y"))
        return build(nodes, {"x": f32(2, 6, 4, 4)}, ["y"], weights | {"head.weight": state["head.weight"]})

    state = {}
    for k in range(3):
        ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
        state |= {f"conv{k}.weight": f32(6, 6, 1, 1), f"bn{k}.weight": ones, f"bn{k}.bias": zeros,
                  f"bn{k}.running_mean": zeros, f"bn{k}.running_var": ones}  # fmt: skip
    state["head.weight"] = f32(3, 6, 1, 1)
    sizes = {"conv0": 8, "conv1": 10, "conv2": 12}

    def grow(model):
        return widen(model, sizes={f"w{k}": sizes[f"conv{k}"] for k in range(3)})

    _, result = check(class_, state, tmp_path, grow)
    assert [result[f"bn{k}.running_var"].new for k in range(3)] == [(8,), (10,), (12,)]


def looked_up(state):
    """Swin's relative positions: a table of values for each head, which the export looks up."""
    table, index = state["table"], state["index"]
    heads = table.shape[1]
    bias = table[index.reshape(-1)].reshape(4, 4, heads).transpose(2, 0, 1)[None]
    nodes = [
        *linear("x", "w", "b", "h"),
        node("Reshape", ["h", "apart"], "t"),
        node("Transpose", ["t"], "q", perm=[0, 2, 1, 3]),
        node("Transpose", ["q"], "k", perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "k"], "s"),
        node("Add", ["s", "bias"], "a"),
        node("Softmax", ["a"], "p"),
        node("MatMul", ["p", "q"], "o"),
        node("Transpose", ["o"], "m", perm=[0, 2, 1, 3]),
        node("Reshape", ["m", "together"], "f"),
        *linear("f", "v", "c", "y"),
    ]
    weights = {"w": state["q.weight"].T, "b": state["q.bias"], "bias": bias, "v": state["out.weight"].T,
               "c": state["out.bias"], "apart": np.array([0, 4, heads, 3]),
               "together": np.array([0, 4, heads * 3])}  # fmt: skip
    return build(nodes, {"x": f32(2, 4, 5)}, ["y"], weights)


def test_a_table_that_was_looked_up(tmp_path):
    index = (np.arange(4)[:, None] - np.arange(4)[None] + 3).astype(np.int64)
    state = {"table": f32(7, 2), "index": index, "q.weight": f32(6, 5), "q.bias": f32(6), "out.weight": f32(5, 6),
             "out.bias": f32(5)}  # fmt: skip
    relations, result = check(looked_up, state, tmp_path, lambda model: widen(model, sizes={"heads": 4}))
    assert relations["table"] == "gathered"
    assert relations["index"] == "passed through"
    assert result["table"].new == (7, 4)


# --- Ties, and equal values ----------------------------------------------------------------------------------


def tied(state):
    nodes = [
        node("Gather", ["emb.weight", "ids"], "e", "emb"),
        node("Relu", ["e"], "r"),
        node("MatMul", ["r", "fc"], "f", "fc"),
        node("Relu", ["f"], "s"),
        node("Transpose", ["emb.weight"], "t", "head", perm=[1, 0]),
        node("MatMul", ["s", "t"], "y", "head"),
    ]
    weights = {"emb.weight": state["emb.weight"], "fc": state["fc.weight"].T}
    return build(nodes, {"ids": np.array([[1, 2, 3]])}, ["y"], weights)


def untied(state):
    nodes = [*tied(state).graph.node]
    nodes[4] = node("Transpose", ["head.weight"], "t", "head", perm=[1, 0])
    weights = {"emb.weight": state["emb.weight"], "fc": state["fc.weight"].T, "head.weight": state["head.weight"]}
    return build(nodes, {"ids": np.array([[1, 2, 3]])}, ["y"], weights)


def test_a_tie_that_does_not_hold_is_refused(tmp_path):
    embedding = f32(11, 8)
    state = {"emb.weight": embedding, "fc.weight": f32(8, 8), "head.weight": embedding}
    with pytest.raises(RefusedError, match=r"tied weights grew differently: emb\.weight"):
        made(tied, state, tmp_path)
    with pytest.raises(RefusedError, match=r"tied weights grew differently: emb\.weight in head"):
        made(tied, {name: state[name] for name in ("emb.weight", "fc.weight")}, tmp_path)


def test_a_tie_can_be_given_up(tmp_path):
    embedding = f32(11, 8)
    state = {"emb.weight": embedding, "fc.weight": f32(8, 8), "head.weight": embedding}
    teacher, _, result = made(tied, state, tmp_path, untie=True)
    verify(teacher, untied(result.arrays())).raise_if_different()
    assert "no longer tied" in result.notes[0]


def test_equal_values_that_the_exporter_merged(tmp_path):
    """One initializer for two biases of zeros, whose layers grow differently: the modules of the nodes tell."""

    def class_(state):
        merged = np.array_equal(state["a.bias"], state["b.bias"])
        first, second = ("a.bias", "a.bias" if merged else "b.bias")
        nodes = [
            *linear("x", "wa", first, "h", "a"), node("Relu", ["h"], "r"),
            *linear("r", "wb", second, "i", "b"), node("Relu", ["i"], "s"), node("MatMul", ["s", "wc"], "y", "c"),
        ]  # fmt: skip
        weights = {"wa": state["a.weight"].T, "wb": state["b.weight"].T, "wc": state["c.weight"].T}
        weights |= {name: state[name] for name in (first, second)}
        return build(nodes, {"x": f32(2, 3, 5)}, ["y"], weights)

    zeros = np.zeros(8, np.float32)
    state = {"a.weight": f32(8, 5), "a.bias": zeros, "b.weight": f32(8, 8), "b.bias": zeros, "c.weight": f32(3, 8)}
    _, result = check(class_, state, tmp_path, lambda model: widen(model, sizes={"wa": 12, "wb": 16}))
    assert (result["a.bias"].new, result["b.bias"].new) == ((12,), (16,))


# --- Histories -----------------------------------------------------------------------------------------------


def test_several_steps(tmp_path):
    _relations, result = check(
        plain, PLAIN, tmp_path, lambda model: widen(model, factor=1.5), lambda model: widen(model, factor=2, seed=3)
    )
    assert result["fc2.weight"].new == (4, 24)
    assert len(result["fc2.weight"].growths) == 2


@pytest.mark.parametrize("class_", [plain, transposed])
def test_new_layers_have_the_students_names(tmp_path, class_):
    def deeper(state):
        proto = class_(state)
        new = [name for name in state if "new0" in name]
        assert len(new) == 2
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        assert set(PLAIN) | set(new) == set(state)
        weight, bias = sorted(new, reverse=True)
        nodes = list(proto.graph.node)
        at = next(k for k, n in enumerate(nodes) if n.op_type == "Relu")
        nodes[at + 1].input[0] = "again"
        more = [node("MatMul", ["r", "new"], "p"), node("Add", ["p", bias], "q"), node("Relu", ["q"], "again")]
        nodes[at + 1 : at + 1] = more
        values |= {"new": state[weight].T, bias: state[bias]}
        return build(nodes, {"x": f32(*[d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])}, ["y"],
                     values)  # fmt: skip

    def grow(model):
        return widen(model, factor=1.5, spread=0.5)

    teacher, _, result = made(class_, PLAIN, tmp_path, lambda model: deepen(model, all=True), grow)
    assert [entry.relation for entry in result.entries][-2:] == ["new", "new"]
    verify(teacher, deeper(result.arrays())).raise_if_different()


def test_new_normalisations_have_the_statistics_of_the_data_that_they_were_calibrated_on(tmp_path):
    state = {"conv.weight": f32(8, 3, 3, 3), "bn.weight": f32(8), "bn.bias": f32(8), "bn.running_mean": f32(8)}
    state["bn.running_var"] = np.abs(f32(8)) + 0.5
    image = f32(4, 3, 6, 6)

    def class_(state):
        nodes = [
            node("Conv", ["x", "conv.weight"], "c", pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c", *(name for name in state if name.startswith("bn"))], "n"),
            node("Relu", ["n"], "y"),
        ]
        return build(nodes, {"x": image}, ["y"], state)

    _, student, result = made(
        class_, state, tmp_path, lambda model: deepen(model, all=True, calibrate={"x": 3 * image})
    )
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(student).graph.initializer}
    new = [entry.name for entry in result.entries if entry.relation == "new"]
    assert any(name.endswith("running_var") for name in new)
    for name in new:
        np.testing.assert_array_equal(result.arrays()[name], values[name])


def test_what_was_narrowed_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="narrowed"):
        made(plain, PLAIN, tmp_path, lambda model: widen(model, factor=1.5, spread=0), narrow)


def test_other_teachers_and_edited_students_are_told(tmp_path):
    teacher, student, _ = made(plain, PLAIN, tmp_path)
    file, other = tmp_path / "teacher.safetensors", tmp_path / "other.onnx"
    onnx.save(plain({name: array + 1 for name, array in PLAIN.items()}), other)
    with pytest.raises(BadInputError, match="step 1 was not applied to this model"):
        checkpoint(other, student, file)
    with pytest.raises(BadInputError, match="no record"):
        checkpoint(teacher, teacher, file)
    proto = onnx.load(student)
    values = onnx.numpy_helper.to_array(proto.graph.initializer[0]) + 1
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, proto.graph.initializer[0].name))
    onnx.save(proto, student)
    with pytest.raises(BadInputError, match="not what its record makes"):
        checkpoint(teacher, student, file)


def test_what_cannot_be_explained_is_refused(tmp_path):
    state = {**PLAIN, "fc1.weight": PLAIN["fc1.weight"] + 1}
    teacher, student, _ = made(plain, PLAIN, tmp_path)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(RefusedError, match=r"these grew, .*: fc1.weight; .*not in the graph: fc1.weight"):
        checkpoint(teacher, student, tmp_path / "other.safetensors")


def test_what_never_was_in_the_graph_passes_through(tmp_path):
    state = {**PLAIN, "mask": f32(3, 3), "steps": np.array(3)}
    relations, result = check(plain, state, tmp_path)
    assert relations["mask"] == relations["steps"] == "passed through"
    np.testing.assert_array_equal(result["mask"].value(), state["mask"])


# --- Without a state dict ------------------------------------------------------------------------------------


def test_names_from_the_graph(tmp_path):
    """Anonymous weights get the names of their modules, and what folded normalisations left becomes one again."""

    def class_(state):
        scale = state["bn1.weight"] / np.sqrt(state["bn1.running_var"] + np.float32(1e-5))
        weights = {
            "onnx::Conv_4": state["conv1.weight"] * scale.reshape(-1, 1, 1, 1),
            "onnx::Conv_5": state["bn1.bias"] - state["bn1.running_mean"] * scale,
            "head.bias": state["head.bias"], "onnx::MatMul_9": state["head.weight"].T,
        }  # fmt: skip
        nodes = [
            node("Conv", ["x", "onnx::Conv_4", "onnx::Conv_5"], "h", "conv1"), node("Relu", ["h"], "r"),
            node("Transpose", ["r"], "t", perm=[0, 2, 3, 1]), *linear("t", "onnx::MatMul_9", "head.bias", "y", "head"),
        ]  # fmt: skip
        return build(nodes, {"x": f32(2, 5, 4, 4)}, ["y"], weights)

    state = with_norm((8, 5, 3, 3))
    state = {name.replace("conv", "conv1").replace("bn", "bn1"): array for name, array in state.items()}
    state["head.weight"] = state["head.weight"][:, :, 0, 0]
    del state["conv1.bias"]
    teacher, student, _ = made(class_, state, tmp_path)
    result = checkpoint(teacher, student)
    grown = result.arrays()
    assert set(grown) == set(state)
    assert {entry.name for entry in result.entries if entry.relation == "recovered"} == {
        f"bn1.{what}" for what in ("weight", "bias", "running_mean", "running_var")
    }
    assert "1 normalisations were folded" in result.notes[-1]
    verify(teacher, class_(grown)).raise_if_different()


# --- State of optimizers -------------------------------------------------------------------------------------


def test_gradients_are_divided_where_values_are_copied_and_copied_where_they_are_divided(tmp_path):
    """growth-math.md, section 3.2, on the two layers of a network that was widened without a spread."""
    _, _, result = made(plain, PLAIN, tmp_path, lambda model: widen(model, factor=1.5, spread=0))
    (side, _) = result["fc1.weight"].growths[0].axes
    map = side.map
    made_, read = f32(8, 5), f32(4, 8)
    weight = map.weight[:, None].astype(np.float32)
    np.testing.assert_array_equal(result["fc1.weight"].grow(made_, "gradient"), made_[map.index] * weight)
    np.testing.assert_array_equal(result["fc2.weight"].grow(read, "gradient"), read[:, map.index])
    np.testing.assert_allclose(result["fc1.weight"].grow(made_**2, "square"), (made_[map.index] * weight) ** 2, 1e-6)
    np.testing.assert_array_equal(result["fc2.weight"].grow(PLAIN["fc2.weight"]), result["fc2.weight"].value())
    with pytest.raises(BadInputError, match="has the shape"):
        result["fc1.weight"].grow(read, "gradient")


# --- The command ---------------------------------------------------------------------------------------------


def test_the_command_writes_and_tells(tmp_path, capsys):
    made(normalised(1e-5), with_norm((8, 5, 3, 3)), tmp_path)
    files = [str(tmp_path / name) for name in ("teacher.onnx", "student1.onnx", "teacher.safetensors")]
    out = tmp_path / "grown.safetensors"
    command = ["checkpoint", *files[:2], "--state-dict", files[2], "-o", str(out)]
    assert main(command) == 0
    assert "folded" in capsys.readouterr().out
    assert load_file(out)["bn.weight"].shape == (12,)
    assert main([*command, "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["entries"]}
    assert (entries["bn.bias"]["before"], entries["bn.bias"]["after"]) == ([8], [12])


def test_the_command_never_writes_over_what_it_reads(tmp_path, capsys):
    made(plain, PLAIN, tmp_path)
    files = [str(tmp_path / name) for name in ("teacher.onnx", "student1.onnx", "teacher.safetensors")]
    for target, reason in ((files[2], "reads its weights from it"), (str(tmp_path / "x.npy"), "state dicts are")):
        assert main(["checkpoint", *files[:2], "--state-dict", files[2], "-o", target]) == 2
        assert reason in capsys.readouterr().err
    assert load_file(files[2])["fc1.weight"].shape == (8, 5)
