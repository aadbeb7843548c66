"""Masks of copies go: exactly where no penalty is left, and with a word on the difference where one is."""

import numpy as np
import onnx
import pytest
from graphs import assert_close, run, weights, weighty
from moe import DISPATCHES, LOOKED_UP, ROUTERS, E, feeds, moe

from onnx_net2net import RefusedError, unmask, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of

FORMS = [(router, LOOKED_UP) for router in ROUTERS] + [("softmax, top-k, normed", d) for d in DISPATCHES.values()]


def masked(form, size="2x"):
    router, dispatch = form
    return weighty(widen(moe(ROUTERS[router], dispatch), sizes={"experts": size}).student)


def with_penalty(proto, penalty):
    """The model with another penalty, as training leaves it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name.endswith("_copies_marks"):
            values = np.array([-penalty, 0], onnx.numpy_helper.to_array(tensor).dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return result


@pytest.mark.parametrize("size", ["2x", "+1"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_without_a_penalty_nothing_changes_and_no_plane_is_left(form, size):
    teacher = with_penalty(masked(form, size), 0)
    result = unmask(teacher)
    assert (result.exact, len(result.masks) > 0) == (True, True)
    student = weighty(result.student)
    assert_close(run(student, feeds())[0], run(teacher, feeds())[0], form, 1e-6)
    assert not any("copies" in name or "planes" in name for name in weights(student))
    assert not {"OneHot", "ArgMax"} & {node.op_type for node in student.graph.node if "copies" in node.name}
    plain = {node.op_type for node in moe(ROUTERS[form[0]], form[1]).graph.node}
    assert {node.op_type for node in student.graph.node} <= plain | {"Identity", "Gather"}


def test_with_a_penalty_it_says_how_far_it_is_off(tmp_path, capsys):
    teacher, student, again = (tmp_path / name for name in ("trained.onnx", "plain.onnx", "again/plain.onnx"))
    onnx.save(masked(("top-k, softmax", LOOKED_UP)), teacher)
    result = unmask(teacher)
    assert [mask.penalty for mask in result.masks] == [10_000]
    assert not result.exact
    assert not verify(teacher, result.student).equivalent
    assert main(["unmask", str(teacher), "-o", str(student)]) == 0
    said = capsys.readouterr().out
    assert "not exact, as asked (copies of experts compete" in said
    assert "NOT equivalent" in said or "not equivalent" in said
    again.parent.mkdir()
    replay(teacher, steps_of(student)[-1:], again)
    assert again.read_bytes() == student.read_bytes()


def test_what_has_no_masks_is_refused():
    form = ROUTERS["groups"], LOOKED_UP  # chooses and marks, too
    with pytest.raises(RefusedError, match="the model has no masks"):
        unmask(moe(*form))
    with pytest.raises(RefusedError, match="the model has no masks"):
        unmask(moe(ROUTERS["softmax, top-k, normed"], DISPATCHES["one hot"]))


def test_a_module_that_was_trained_down_to_no_penalty_is_the_graph_without_masks():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx2fx")
    from onnx_net2net import refit, to_torch

    teacher = masked(("softmax, top-k, normed", LOOKED_UP))
    module = to_torch(teacher)
    (marks,) = [buffer for name, buffer in module.named_buffers() if name.endswith("_copies_marks")]
    marks[0] = 0.0
    given = torch.tensor(feeds()["inputs"])
    expected = module(given)
    expected = expected[0] if isinstance(expected, (tuple, list)) else expected
    trained = refit(teacher, module.state_dict())
    result = unmask(trained)
    found = run(weighty(result.student), feeds())[0]
    assert_close(found, expected.detach().numpy(), "what the module computes without a penalty", 1e-5)
    assert len(weights(result.student)["up"]) == 2 * E
    assert not verify(trained, result.student).equivalent  # the file still has the penalty
