"""Files that are broken, or made to break what reads them: one line says why, in seconds, and nothing is written."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import deepen, inspect, narrow, verify, widen
from onnx_net2net.analysis import inference
from onnx_net2net.analysis.loadable import inspect_for
from onnx_net2net.cli import main as cli
from onnx_net2net.errors import BadInputError, RefusedError, one_line, shown
from onnx_net2net.graph.graph import Graph
from onnx_net2net.graph.sizes import infer_sizes
from onnx_net2net.model.functions import LIMIT, check_functions
from onnx_net2net.model.history import HISTORY, check_values
from onnx_net2net.model.model import load
from onnx_net2net.operations.lineage import departure
from onnx_net2net.operations.narrow.duplicates import _Refinement
from onnx_net2net.operations.transfer import align as alignment
from onnx_net2net.operations.transfer.align import align
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.segments import Segment
from onnx_net2net.operations.transfer.similarity import similarity

ROOT = Path(__file__).resolve().parents[2]
node, value, tensor = helper.make_node, helper.make_tensor_value_info, numpy_helper.from_array
FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng([seed, len(name)]).standard_normal(shape) / np.sqrt(max(shape[0], 1))
    return tensor(values.astype(np.float32), name)


def whole(name: str, *values: int) -> onnx.TensorProto:
    return tensor(np.array(values, np.int64), name)


def model(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int | str, ...] = ("N", 8),
    result: tuple[int | None, ...] = (None, 4),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, shape)], [value("y", FLOAT, result)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def perceptron(*between: onnx.NodeProto, last: str = "h", more: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """Two layers with nodes between them, from `h` to `last`."""
    nodes = [node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"), *between, node("Relu", [last], ["r"], "act"),
             node("Gemm", ["r", "w2", "b2"], ["y"], "fc2")]  # fmt: skip
    weights = [weight("w1", 8, 12), weight("b1", 12), weight("w2", 12, 4), weight("b2", 4)]
    return model(nodes, [*weights, *more])


def command(*arguments: object) -> tuple[int, str]:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main([str(argument) for argument in arguments])
    return code, errors.getvalue()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Far more than it takes, and far less than where work is quadratic; of this process, whatever else runs."""
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


@pytest.fixture(autouse=True)
def _as_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "STRICT", False)


# --- Long and deep ------------------------------------------------------------------------------------------------


def chain(length: int, kind: str = "Relu") -> onnx.ModelProto:
    names = ["h", *(f"t{k}" for k in range(length))]
    return perceptron(*(node(kind, [a], [b]) for a, b in pairwise(names)), last=names[-1])


@pytest.mark.parametrize("act", [inspect, lambda m: widen(m, factor=1.5), lambda m: deepen(m, all=True), narrow])
def test_a_chain_of_thousands_of_nodes_takes_seconds(act: Callable[[onnx.ModelProto], object]) -> None:
    with within(20):
        act(chain(4000))


def test_repeated_activations_of_a_chain_are_all_removed() -> None:
    assert len(narrow(chain(30)).removed) == 30


def test_a_sum_of_thousands_of_inputs_takes_seconds() -> None:
    nodes = [node("Relu", ["h"], [f"t{k}"]) for k in range(4000)]
    with within(20):
        inspection = inspect(perceptron(*nodes, node("Sum", [f"t{k}" for k in range(4000)], ["s"]), last="s"))
    assert any(group.size == 12 and not group.reason for group in inspection.groups)


def test_dims_joined_from_the_newest_to_the_oldest_are_no_recursion() -> None:
    weights = tuple(weight(f"v{k}", 12, 12, seed=k) for k in range(1100))
    makes = [node("MatMul", ["h", f"v{k}"], [f"m{k}"]) for k in range(1100)]
    sums = [node("Add", [f"s{k + 1}" if k < 1098 else "m1099", f"m{k}"], [f"s{k}"]) for k in reversed(range(1099))]
    with within(20):
        inspection = inspect(perceptron(*makes, *sums, last="s0", more=weights))
    assert sum(not group.reason for group in inspection.groups if group.size == 12) == 2


def test_a_concatenation_that_doubles_is_frozen_where_it_has_too_many_parts() -> None:
    names = ["h", *(f"t{k}" for k in range(22))]
    doubled = [node("Concat", [a, a], [b], axis=1) for a, b in pairwise(names)]
    cut = node("Slice", ["t21", "zero", "end", "one"], ["s"])
    teacher = perceptron(*doubled, cut, last="s", more=(whole("zero", 0), whole("end", 12), whole("one", 1)))
    with within(10), pytest.raises(RefusedError, match="nothing grows"):
        widen(teacher, factor=1.5)
    few = perceptron(*doubled[:5], node("Slice", ["t4", "zero", "end", "one"], ["s"]), last="s",
                     more=(whole("zero", 0), whole("end", 12), whole("one", 1)))  # fmt: skip
    verify(few, widen(few, factor=1.5).student).raise_if_different()


def test_dozens_of_sums_and_sequences_in_a_row_are_no_recursion() -> None:
    numbers = tuple(weight(f"s{k}", 12, seed=k) for k in range(1100))
    names = ["h", *(f"t{k}" for k in range(1100))]
    sums = [node("Add", [a, f"s{k}"], [b]) for k, (a, b) in enumerate(pairwise(names))]
    deepen(perceptron(*sums, last="t1099", more=numbers), all=True)
    inserts = [node("SequenceInsert", [f"q{k}", "h"], [f"q{k + 1}"]) for k in range(1100)]
    joined = node("ConcatFromSequence", ["q1100"], ["c"], axis=0)
    inspect(perceptron(node("SequenceEmpty", [], ["q0"]), *inserts, joined, last="c"))


def segments(count: int, kinds: int) -> list[Segment]:
    shapes = [(8 + k % kinds, 8) for k in range(count)]
    return [Segment((Module(k, f"u{k}", "linear", shape, (), (), {}, place=k),)) for k, shape in enumerate(shapes)]


@pytest.mark.parametrize(("length", "kinds", "limit"), [(600, 600, 10_000), (3000, 2, 1 << 22)])
def test_long_networks_are_aligned_near_the_diagonal(
    length: int, kinds: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    alikeness = alignment.alikeness
    monkeypatch.setattr(alignment, "alikeness", lambda one, other: calls.append(0) or alikeness(one, other))
    monkeypatch.setattr(alignment, "LIMIT", limit)
    found = align(segments(length, kinds), segments(length + 2, kinds))
    assert [(old.place, new.place) for old, new in found.pairs] == [(k, k) for k in range(length)]
    assert len(calls) < 100 * length
    assert not found.lost


def test_identities_in_a_row_are_not_walked_along() -> None:
    teacher = chain(1500, "Identity")
    nodes = Graph(load(teacher)).graph.nodes
    for one in nodes:
        length, tensor = 0, one.inputs[0]
        while tensor.inputs and tensor.inputs[0].op == "Identity":
            length, tensor = length + 1, tensor.inputs[0].inputs[0]
        assert length <= 17
    few = chain(40, "Identity")
    verify(few, widen(few, factor=1.5).student).raise_if_different()


def test_what_a_chain_of_concatenations_reads_is_folded_once_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    folded = _Refinement._folded
    monkeypatch.setattr(_Refinement, "_folded", lambda self, use: calls.append(use) or folded(self, use))
    counts = []
    for length in (6, 24):
        tensors = ["h", *(f"t{k}" for k in range(length))]
        nodes = [made for k, (a, b) in enumerate(pairwise(tensors)) for made in (
            node("MatMul", [a, f"k{k}"], [f"m{k}"]), node("Relu", [f"m{k}"], [f"r{k}"]),
            node("Concat", [a, f"r{k}"], [b], axis=1))]  # fmt: skip
        weights = [weight(f"k{k}", 12 + 4 * k, 4) for k in range(length)]
        dense = perceptron(*nodes, last=tensors[-1], more=tuple(weights))
        next(t for t in dense.graph.initializer if t.name == "w2").CopyFrom(weight("w2", 12 + 4 * length, 4))
        calls.clear()
        with contextlib.suppress(RefusedError):
            narrow(dense)
        counts.append(len(calls))
    assert counts[1] < 9 * counts[0]  # in proportion it is 4 times, give or take the order of sets; for each pair 16


def test_weights_that_double_are_looked_at_once() -> None:
    names = ["e", *(f"d{k}" for k in range(50))]
    doubled = [node("Add", [a, a], [b]) for a, b in pairwise(names)]
    with within(10):
        inspect_for("torch", perceptron(*doubled, node("Mul", ["h", "d49"], ["s"]), last="s", more=(weight("e", 12),)))


def test_more_layers_than_dpiat_can_match_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_net2net.operations.transfer.dpiat.dpiat.LIMIT", 7)
    teacher = perceptron()
    (found,) = similarity(teacher, [teacher], measure="kept")
    assert (found.kept, found.dpiat) == (1, None)
    with pytest.raises(RefusedError, match="cubic"):
        similarity(teacher, [teacher], measure="dpiat")


# --- Overlapping frames and streams -------------------------------------------------------------------------------


def frames(hop: int, count: int, hidden: int) -> onnx.ModelProto:
    """A waveform in frames that overlap by half (two slices, one shifted by a hop, joined), convolutions behind."""
    total = hop * (count + 1)
    nodes = [
        node("Slice", ["x", "s0", "e0", "one"], ["a"]), node("Slice", ["x", "s1", "e1", "one"], ["b"]),
        node("Reshape", ["a", "shape"], ["af"]), node("Reshape", ["b", "shape"], ["bf"]),
        node("Concat", ["af", "bf"], ["f"], axis=2), node("MatMul", ["f", "dft"], ["spectrum"]),
        node("Mul", ["spectrum", "spectrum"], ["power"]), node("Unsqueeze", ["power", "one"], ["image"]),
        node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]), node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]), node("Relu", ["c2"], ["r2"]),
        node("GlobalMaxPool", ["r2"], ["p"]), node("Flatten", ["p"], ["q"]),
        node("Gemm", ["q", "w3", "b3"], ["y"], "fc"),
    ]  # fmt: skip
    weights = [
        whole("s0", 0), whole("e0", hop * count), whole("s1", hop), whole("e1", total), whole("one", 1),
        whole("shape", -1, count, hop), weight("dft", 2 * hop, 10), weight("w1", hidden, 1, 3, 3), weight("b1", hidden),
        weight("w2", hidden, hidden, 3, 3), weight("b2", hidden), weight("w3", hidden, 3), weight("b3", 3),
    ]  # fmt: skip
    return model(nodes, weights, ("N", total), (None, 3))


@pytest.mark.parametrize(("hop", "count"), [(4, 500), (5, 7), (1, 3000), (160, 98)])
def test_a_network_on_overlapping_frames_grows_exactly(hop: int, count: int) -> None:
    teacher = frames(hop, count, 6)
    with within(30):
        widening = widen(teacher, factor=2)
    shapes = {t.name: tuple(t.dims) for t in widening.student.proto.graph.initializer}
    assert (shapes["w1"], shapes["w2"], shapes["w3"]) == ((12, 1, 3, 3), (12, 12, 3, 3), (12, 3))
    assert shapes["dft"][0] == 2 * hop
    verify(teacher, widening.student).raise_if_different()


def streaming(hidden: int) -> onnx.ModelProto:
    """One step of a streaming enhancer: a causal convolution and a GRU, whose caches are inputs and outputs."""
    nodes = [
        node("Concat", ["conv_cache", "x"], ["joined"], axis=2), node("Conv", ["joined", "w1", "b1"], ["c"], "conv"),
        node("Slice", ["joined", "one", "end", "two"], ["conv_cache_out"]), node("Relu", ["c"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[2, 0, 1]),
        node("GRU", ["t", "wg", "rg", "bg", "", "state"], ["g", "state_out"], "gru", hidden_size=5),
        node("Squeeze", ["g", "ones"], ["s"]), node("MatMul", ["s", "wo"], ["y"], "out"),
    ]  # fmt: skip
    weights = [whole("one", 1), whole("end", 9), whole("two", 2), whole("ones", 1), weight("w1", hidden, 4, 3),
               weight("b1", hidden), weight("wg", 1, 15, hidden), weight("rg", 1, 15, 5), weight("bg", 1, 30),
               weight("wo", 5, 4)]  # fmt: skip
    made = model(nodes, weights, (1, 4, 1), (1, 1, 4))
    made.graph.input.extend([value("conv_cache", FLOAT, (1, 4, 2)), value("state", FLOAT, (1, 1, 5))])
    made.graph.output.extend([value("conv_cache_out", FLOAT, (1, 4, 2)), value("state_out", FLOAT, (1, 1, 5))])
    return made


def test_a_stream_whose_caches_are_inputs_and_outputs_grows_between_them() -> None:
    teacher = streaming(6)
    student = widen(teacher, factor=2).student
    shapes = {t.name: tuple(t.dims) for t in student.proto.graph.initializer}
    assert (shapes["w1"], shapes["wg"], shapes["rg"]) == ((12, 4, 3), (1, 15, 12), (1, 15, 5))
    assert [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in student.proto.graph.input] == [
        (1, 4, 1), (1, 4, 2), (1, 1, 5),
    ]  # fmt: skip
    verify(teacher, student).raise_if_different()


# --- Functions ----------------------------------------------------------------------------------------------------


def calling(functions: list[onnx.FunctionProto], last: str) -> onnx.ModelProto:
    made = perceptron(node(last, ["h"], ["f"], domain="my"), last="f")
    made.functions.extend(functions)
    made.opset_import.append(helper.make_opsetid("my", 1))
    return made


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("my", name, ["a"], ["b"], list(nodes),
                                [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)])  # fmt: skip


def call(name: str, given: str = "a", made: str = "b") -> onnx.NodeProto:
    return node(name, [given], [made], domain="my")


def twice(depth: int) -> list[onnx.FunctionProto]:
    steps = [function("F0", node("Relu", ["a"], ["b"]))]
    return [*steps, *(function(f"F{k}", call(f"F{k - 1}", "a", "t"), call(f"F{k - 1}", "t")) for k in range(1, depth))]


def test_functions_whose_calls_multiply_are_counted_before_they_are_opened() -> None:
    with within(5), pytest.raises(BadInputError, match=r"1,073,741,827 nodes .* at most 1,000,000"):
        load(calling(twice(31), "F30"))
    assert LIMIT == 1_000_000
    teacher = calling(twice(4), "F3")
    verify(teacher, widen(teacher, factor=1.5).student).raise_if_different()


@pytest.mark.parametrize(
    ("functions", "last", "reason"),
    [
        ([function("F", call("F"))], "F", "function F calls itself"),
        ([function("F", call("G")), function("G", call("F"))], "F", "calls itself"),
        ([function("F", node("Relu", ["a"], ["b"]))] * 2, "F", "two of its functions have the same name"),
    ],
)
def test_functions_without_an_end_or_a_meaning_are_refused(
    functions: list[onnx.FunctionProto], last: str, reason: str
) -> None:
    with pytest.raises(BadInputError, match=reason):
        load(calling(functions, last))


def test_a_function_that_two_others_call_is_no_circle() -> None:
    diamond = [function("A", call("B", "a", "t"), call("C", "t")), function("B", call("D")), function("C", call("D")),
               function("D", node("Relu", ["a"], ["b"]))]  # fmt: skip
    check_functions(calling(diamond, "A"))


def test_functions_that_the_inliner_does_not_take_freeze() -> None:
    steps = [function("F0", node("Relu", ["a"], ["b"]))]
    deep = [*steps, *(function(f"F{k}", call(f"F{k - 1}")) for k in range(1, 300))]
    with pytest.raises(RefusedError, match="no growth rule"):
        widen(calling(deep, "F299"), factor=1.5)


def test_functions_that_call_themselves_do_not_run() -> None:
    made = perceptron()
    made.functions.append(function("F", call("F")))
    made.opset_import.append(helper.make_opsetid("my", 1))
    with pytest.raises(BadInputError, match="the teacher does not run"):
        verify(made, made)


def test_a_node_that_joins_nothing_is_inspected() -> None:
    made = perceptron()
    made.graph.node.insert(0, node("Concat", [], ["nothing"], axis=0))
    assert inspect(made).groups


# --- Types and sizes ----------------------------------------------------------------------------------------------


def test_element_types_that_there_are_not_are_refused() -> None:
    made = perceptron()
    made.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(BadInputError, match="x has the element type 99, which does not exist"):
        load(made)
    made = perceptron()
    made.graph.initializer[0].data_type = TensorProto.UNDEFINED
    with pytest.raises(BadInputError, match="initializer w1 has no element type"):
        load(made)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("Tile", (2**62, 4)), ("Tile", (2**40, 2**40)), ("Pad", (0, 0, 0, -(2**40))), ("Reshape", (2**63 - 1,)),
     ("Expand", (2**31, 2**31, 12)), ("Reshape", (-(2**63), 12))],
)  # fmt: skip
def test_sizes_that_no_memory_holds_are_not_computed(kind: str, numbers: tuple[int, ...]) -> None:
    teacher = perceptron(node(kind, ["h", "n"], ["t"]), last="t", more=(whole("n", *numbers),))
    with within(5):
        inspect(teacher)


@pytest.mark.parametrize(
    "made",
    [
        node("HannWindow", ["big"], ["t"]), node("OneHot", ["one", "big", "pair"], ["t"]),
        node("MaxPool", ["four"], ["t"], kernel_shape=[1], pads=[2**40, 2**40]),
        node("Einsum", ["wide", "wide", "wide", "wide"], ["t"], equation="a,b,c,d->abcd"),
        node("Sum", ["long", "row", "page"], ["t"]), node("Range", ["nil", "big", "unit"], ["t"]),
    ],
)  # fmt: skip
def test_small_constants_are_not_blown_up(made: onnx.NodeProto) -> None:
    ones = {"four": (1, 1, 4), "wide": (2000,), "long": (2000, 1, 1), "row": (1, 2000, 1), "page": (1, 1, 2000)}
    constants = [tensor(np.ones(shape, np.float32), name) for name, shape in ones.items()]
    numbers = {"big": 2**40, "nil": 0, "unit": 1, "one": [1], "pair": [0, 1]}
    constants += [tensor(np.array(number, np.int64), name) for name, number in numbers.items()]
    with within(5):
        known = infer_sizes(model([made], constants))
    assert "t" not in known.values


def test_what_an_operator_cannot_have_freezes() -> None:
    lstm = node("LSTM", ["h", "wx", "rx"], ["t"], hidden_size=2)
    teacher = perceptron(lstm, last="t", more=(weight("wx", 1, 8, 12), weight("rx", 8)))
    assert all(group.reason for group in inspect(teacher).groups)


def test_a_rule_that_stumbles_freezes_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(op: object) -> None:
        raise LookupError("no such attribute")

    monkeypatch.setattr(inference, "lookup", lambda domain, kind, version: stumbles if kind == "Relu" else None)
    assert all(group.reason for group in inspect(perceptron()).groups)
    monkeypatch.setattr(inference, "STRICT", True)
    with pytest.raises(LookupError, match="no such attribute"):
        inspect(perceptron())


# --- Files beside the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a" * 300, "loop", "\x00", "../m.onnx", "/etc/hostname", ""])
def test_places_of_external_data_that_are_none_are_refused(tmp_path: Path, place: str) -> None:
    made = perceptron()
    target = made.graph.initializer[0]
    target.ClearField("raw_data")
    target.data_location = TensorProto.EXTERNAL
    target.external_data.add(key="location", value=place)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    code, errors = command("inspect", tmp_path / "m.onnx")
    assert code == 2
    assert errors.count("\n") == 1
    assert "external data" in errors


@pytest.mark.parametrize("offset", ["abc", "-1", "1e3", "9" * 30])
def test_offsets_of_external_data_that_are_none_are_refused(tmp_path: Path, offset: str) -> None:
    made = perceptron()
    target = made.graph.initializer[0]
    target.ClearField("raw_data")
    target.data_location = TensorProto.EXTERNAL
    target.external_data.add(key="location", value="data")
    target.external_data.add(key="offset", value=offset)
    (tmp_path / "data").write_bytes(bytes(8 * 12 * 4))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert command("inspect", tmp_path / "m.onnx")[0] == 2


# --- Records, recipes, examples, state dicts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["[1]", "[[1]]", '[{"operation":["widen"]}]', '[{"operation":"rm"}]',
     '[{"operation":"widen","interface":5}]', '[{"operation":"widen","interface":[[1]]}]',
     '[{"operation":"widen","sizes":5}]', '[{"operation":"deepen","repeat":[5]}]'],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    made = perceptron()
    (tmp_path / "good.onnx").write_bytes(made.SerializeToString())
    made.metadata_props.add(key=HISTORY, value=text)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    for arguments in (
        ("widen", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--factor", "1.5"),
        ("verify", tmp_path / "good.onnx", tmp_path / "m.onnx"),
        ("checkpoint", tmp_path / "good.onnx", tmp_path / "m.onnx", "-o", tmp_path / "o.safetensors"),
        ("replay", tmp_path / "good.onnx", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx"),
    ):
        code, errors = command(*arguments)
        assert code == 2
        assert errors.count("\n") == 1
        assert HISTORY in errors
    assert sorted(os.listdir(tmp_path)) == ["good.onnx", "m.onnx"]


@pytest.mark.parametrize(
    "change", [{"count": 10**9}, {"operation": "widen", "sizes": {"fc1": 10**9}}, {"factor": 1e9}, {"target": "t.onnx"}]
)
def test_a_record_that_asks_for_too_much_is_not_repeated(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load(perceptron())
    deepen(teacher, all=True).student.save(tmp_path / "s.onnx")
    student = load(tmp_path / "s.onnx")
    assert departure(teacher, student) is not None
    (entry,) = (entry for entry in student.proto.metadata_props if entry.key == HISTORY)
    (step,) = json.loads(entry.value)
    for steps in ([step | change], [step] * 101):
        entry.value = json.dumps(steps)
        monkeypatch.setattr("onnx_net2net.operations.lineage.redo", lambda *_: pytest.fail("it is repeated"))
        assert departure(teacher, student) is None


@pytest.mark.parametrize("text", ["7", "{", "[" * 100_000])
def test_an_entry_that_is_no_list_is_somebody_elses(tmp_path: Path, text: str) -> None:
    made = perceptron()
    (tmp_path / "good.onnx").write_bytes(made.SerializeToString())
    made.metadata_props.add(key=HISTORY, value=text)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert command("verify", tmp_path / "good.onnx", tmp_path / "m.onnx")[0] == 0
    code, errors = command("replay", tmp_path / "good.onnx", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert (code, errors.count("\n")) == (2, 1)
    assert command("widen", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--factor", "1.5")[0] == 0


def test_a_record_of_a_later_version_may_say_more() -> None:
    check_values({"operation": "widen", "factor": 2, "sizes": None, "what is not known": [{}]}, "step 1")


@pytest.mark.parametrize(
    "text",
    ["factor: 2026-13-45", "factor: !!int abc", "factor: !!bool abc", "factor: !!timestamp abc", "sizes: 5",
     "factor: " + "9" * 5000, "only: 5", "'fac\\ntor': 2", "factor: [" * 3000, "seed: &a [*a]", "calibrate: 5"],
)  # fmt: skip
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    (tmp_path / "r.yaml").write_text(f"- operation: widen\n  {text}\n", encoding="utf-8")
    code, errors = command("replay", tmp_path / "m.onnx", tmp_path / "r.yaml", "-o", tmp_path / "o.onnx")
    assert code == 2
    assert errors.count("\n") == 1
    assert "r.yaml" in errors
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "r.yaml"]


def _flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 2
    path.write_bytes(data)


def _method(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + place] |= 99 if place == 10 else 1
    data[place - 2] |= 99 if place == 10 else 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "place"), [(_flipped, 60), (_method, 10), (_method, 8)])
def test_examples_in_a_damaged_file_are_refused(
    tmp_path: Path, damage: Callable[[Path, int], None], place: int
) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    np.savez_compressed(tmp_path / "d.npz", x=np.ones((64, 8), np.float32))
    damage(tmp_path / "d.npz", place)
    code, errors = command("verify", tmp_path / "m.onnx", tmp_path / "m.onnx", "--data", tmp_path / "d.npz")
    assert (code, errors.count("\n")) == (2, 1)
    assert "is no npz of plain arrays" in errors


@pytest.mark.parametrize(("array", "reason"), [(np.ones((0, 8)), "no examples"), (np.array(3.0), "has shape ()")])
def test_no_examples_are_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    np.savez(tmp_path / "d.npz", x=array.astype(np.float32))
    files = tmp_path / "m.onnx", tmp_path / "m.onnx"
    code, errors = command("transfer", *files, "-o", tmp_path / "o.onnx", "--data", tmp_path / "d.npz")
    assert code == 2
    assert reason in errors


def test_examples_that_nothing_needs_are_read_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"missing\.npz"):
        deepen(perceptron(), all=True, calibrate=tmp_path / "missing.npz")


def test_a_state_dict_inside_itself_is_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from onnx_net2net.framework.formats.state_dicts import read

    itself: dict[str, object] = {"epoch": 1}
    itself["state_dict"] = itself
    torch.save(itself, tmp_path / "s.pt")
    with pytest.raises(BadInputError, match="no tensors by name"):
        read(tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BadInputError, match="cannot read"):
        read(tmp_path / "t.pt")


# --- What is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["w\nonnx-net2net: a second message", "w\x1b[31m\x1b]0;title\x07", "\u202etxt", "[/b]"]
)
def test_names_are_shown_escaped(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    made = perceptron()
    made.graph.node[1].op_type, made.graph.node[1].domain = name, "my.own"
    made.opset_import.add(domain="my.own", version=1)
    for old in ("w1", "w2"):
        next(t for t in made.graph.initializer if t.name == old).name = f"{name}{old}"
    made.graph.node[0].input[1], made.graph.node[2].input[1] = f"{name}w1", f"{name}w2"
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert cli.main(["widen", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--factor", "1.5"]) == 3
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert errors[:-1].isprintable()
    cli.main(["inspect", str(tmp_path / "m.onnx")])
    assert all(line.isprintable() for line in capfd.readouterr().out.splitlines())
    cli.main(["inspect", str(tmp_path / "m.onnx"), "--json"])
    assert any(name in dim["name"] for dim in json.loads(capfd.readouterr().out)["dims"])


def test_names_are_shown_shortened() -> None:
    assert shown("a" * 1_000_000) == "a" * 100 + "..." + "a" * 100
    assert len(shown("a b " * 1_000_000)) == 4000
    assert shown("layer1.0/conv é") == "layer1.0/conv é"
    assert shown("\ud800") == "\\ud800"
    assert one_line("several\n  lines \x1b[0m") == "several lines \\x1b[0m"
    assert str(BadInputError("tensor a\nb")) == "tensor a\\nb"


def test_what_nobody_has_foreseen_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(perceptron(), tmp_path / "m.onnx")
    for error in (RecursionError("too deep"), KeyError("q\nr"), MemoryError()):

        def fails(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("onnx_net2net.cli.inspect.inspect_for", fails)
        assert cli.main(["inspect", str(tmp_path / "m.onnx")]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "memory" in errors or ("m.onnx" in errors and "--debug" in errors)
        for arguments in (["--debug", "inspect", "m.onnx"], ["inspect", "m.onnx", "--debug"]):
            assert cli.main(arguments) == 2
            assert "Traceback" in capsys.readouterr().err


def test_onnxruntime_writes_no_files_and_no_warnings(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    again = ["verify", "m.onnx", "m.onnx"]
    done = subprocess.run([sys.executable, "-m", "onnx_net2net", *again], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stderr == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []


# --- Attacks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("flips", 150), ("hostile", 150), ("states", 60)])
def test_attacks_end_in_one_line(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    attack = __import__("attack")
    assert [found for found in attack.attack(kind, count, seed=7) if found[-1]] == []
