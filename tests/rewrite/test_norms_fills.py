"""Norms that were filled up to whole multiples are taken for plain ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import net, run, weighty
from onnx import helper

from onnx_net2net import load, narrow, verify, widen
from onnx_net2net.analysis.inference import infer
from onnx_net2net.rewrite.norms import unfill


def draw(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


NET = """(float[N, 6] x) => (float[N, 4] y) {
    h = MatMul(x, up) r = Relu(h) n = LayerNormalization(r, gain, shift) y = MatMul(n, down) }"""


def teacher() -> onnx.ModelProto:
    return net(NET, up=draw(6, 8), gain=1 + draw(8), shift=draw(8), down=draw(8, 4))


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("size", [10, 13, 20])
def test_a_filled_norm_reads_and_makes_what_it_did_before(size: int) -> None:
    student = widen(teacher(), sizes={"up": size}, fill_norms=True).student
    assert "Concat" in kinds(student.proto)
    analysis = infer(student)
    (fill,) = unfill(analysis)
    plain = analysis.graph.finish(stale="all")
    assert kinds(plain.proto) == kinds(teacher())
    made = next(node for node in plain.proto.graph.node if node.op_type == "LayerNormalization")
    assert (made.input[0], made.output[0]) == (fill.source, fill.result)
    assert fill.axis in (1, -1)
    counts = np.bincount(fill.places, minlength=size)
    assert len(counts) == size
    assert counts.min() == 1, "no unit is left out"
    units = weighty(student).graph
    up = next(onnx.numpy_helper.to_array(t) for t in units.initializer if t.name == "up")
    read = [
        sum(counts[k] for k in range(size) if np.array_equal(up[:, k], column)) for column in np.unique(up, axis=1).T
    ]
    assert len(set(read)) == 1, "each unit of the teacher is read equally often"


def test_what_was_filled_up_is_undone_by_narrow() -> None:
    student = widen(teacher(), sizes={"up": 11}, fill_norms=True).student
    back = narrow(student).student
    assert sorted(kinds(back.proto)) == sorted(kinds(teacher()))
    verify(teacher(), back).raise_if_different()


def test_whole_multiples_were_not_filled_up() -> None:
    analysis = infer(widen(teacher(), sizes={"up": 16}).student)
    assert unfill(analysis) == []


@pytest.mark.parametrize("other", ["the result", "what was filled up"])
def test_what_others_read_is_no_fill(other: str) -> None:
    proto = weighty(widen(teacher(), sizes={"up": 11}, fill_norms=True).student)
    norm = next(node for node in proto.graph.node if node.op_type == "LayerNormalization")
    name = norm.output[0] if other == "the result" else norm.input[0]
    proto.graph.node.append(helper.make_node("ReduceMax", [name], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 1]))
    assert unfill(infer(load(proto))) == []
    assert run(proto, {"x": draw(1, 6)})[1].shape == (1, 1)
