"""Experts that are chosen often get more copies; the record has the numbers, and needs no data again."""

import numpy as np
import onnx
import pytest
from graphs import assert_close, run, weighty
from moe import LOOKED_UP, ROUTERS, E, K, T, feeds, moe

from onnx_net2net import RefusedError, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.errors import BadInputError
from onnx_net2net.operations.replay import replay, steps_of
from onnx_net2net.operations.widen.load import copies_by_load, expert_load

FORM = ROUTERS["top-k, softmax"], LOOKED_UP


def chosen(seed=1):
    """The experts that each position chooses, by numpy."""
    proto = moe(*FORM)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    logits = np.tanh(feeds(seed)["inputs"] @ weights["first"]) @ weights["router"].T + weights["bias"]
    return np.argsort(-logits, axis=1)[:, :K]


def test_choices_are_counted():
    (load,) = expert_load(moe(*FORM), feeds()).values()
    np.testing.assert_allclose(load, np.bincount(chosen().reshape(-1), minlength=E) / (T * K))


@pytest.mark.parametrize(
    ("load", "new", "counts"),
    [([1, 1, 1, 1], 6, [2, 2, 1, 1]), ([8, 1, 1, 1], 7, [4, 1, 1, 1]), ([4, 3, 0, 0], 8, [3, 3, 1, 1]),
     ([0, 0], 4, [3, 1]), ([5, 1], 2, [1, 1])],
)  # fmt: skip
def test_the_busiest_expert_gets_the_next_copy(load, new, counts):
    assert copies_by_load(load, new).sum() == new
    if sum(load):
        assert copies_by_load(load, new).tolist() == counts


@pytest.mark.parametrize("router", ["top-k, softmax", "sigmoid, bias", "softmax, top-k, normed"])
def test_uneven_copies_compute_the_same(router):
    proto = moe(ROUTERS[router], LOOKED_UP)
    loads = expert_load(proto, feeds())
    for options in ({}, {"how": "lift"} if "bias" in ROUTERS[router] else {}):
        student = weighty(widen(proto, sizes={"experts": "2x"}, loads=loads, **options).student)
        for seed in range(3):
            assert_close(run(student, feeds(seed))[0], run(proto, feeds(seed))[0], router, 1e-5)


def test_the_command_counts_and_the_record_has_the_numbers(tmp_path, capsys):
    teacher, data, student = (tmp_path / name for name in ("teacher.onnx", "data.npz", "student.onnx"))
    onnx.save(moe(*FORM), teacher)
    np.savez(data, **feeds())
    asked = ["--set", "experts=+3", "--load", str(data)]
    assert main(["widen", str(teacher), "-o", str(student), *asked]) == 0, capsys.readouterr().err
    (loads,) = [step["loads"] for step in steps_of(student)]
    assert list(loads.values()) == list(expert_load(teacher, feeds()).values())
    assert verify(teacher, student).equivalent
    again = tmp_path / "again" / "student.onnx"
    again.parent.mkdir()
    replay(teacher, steps_of(student), again)
    assert again.read_bytes() == student.read_bytes()


def test_what_makes_no_sense_is_said():
    for options in ({"how": "topk"}, {"how": "granular"}):
        with pytest.raises(RefusedError, match="and --how split or lift"):
            widen(moe(*FORM), sizes={"experts": "2x"}, loads=expert_load(moe(*FORM), feeds()), **options)
    with pytest.raises(RefusedError, match="its 4 experts"):
        widen(moe(*FORM), sizes={"experts": "2x"}, loads={"router": [1.0, 2.0]})
    with pytest.raises(BadInputError):
        expert_load(moe(*FORM), {"inputs": np.zeros((3, 3), np.float32)})
