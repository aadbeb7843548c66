"""Feed-forward blocks become mixtures of experts: exact in every form, recorded, and growable like any mixture."""

import numpy as np
import onnx
import pytest
from feedforwards import BLOCKS, D, H, dense, feeds
from graphs import assert_close, run, weights, weighty

from onnx_net2net import deepen, inspect, load, upcycle, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.operations.replay import replay, steps_of


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("form", BLOCKS)
def test_every_form_computes_the_same_as_experts(form, shared):
    proto = dense(form)
    student = weighty(upcycle(proto, experts=5, k=3, shared=shared).student)
    onnx.checker.check_model(student, full_check=True)
    for seed in range(3):
        assert_close(run(student, feeds(seed))[0], run(proto, feeds(seed))[0], form, 1e-5)


def test_nothing_of_the_block_is_left_and_stacks_have_names():
    student = upcycle(dense("relu"), experts=4).student
    shapes = {name: array.shape for name, array in weights(student).items() if array.ndim > 1}
    assert shapes == {
        "first": (6, D), "head": (D, 5), "down.router.weight": (D, 4)
    } | {name: shape for name, shape in shapes.items() if ".experts." in name}  # fmt: skip
    stacks = sorted(shape for name, shape in shapes.items() if ".experts." in name)
    assert stacks == sorted([(4, D, H), (4, 1, H), (4, H, D), (4, 1, D)])


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_older_operator_sets_take_it(opset):
    proto = dense("relu", opset)
    assert_close(run(weighty(upcycle(proto, experts=4).student), feeds())[0], run(proto, feeds())[0], "old", 1e-5)


def test_with_a_shared_expert_it_is_bit_for_bit_and_one_is_enough():
    proto = dense("gelu")
    student = weighty(upcycle(proto, experts=4, k=1, shared=True).student)
    assert np.array_equal(run(student, feeds())[0], run(proto, feeds())[0])


@pytest.mark.parametrize("shared", [False, True])
def test_a_mixture_grows_like_any_other(shared):
    proto = dense("gated")
    student = upcycle(proto, experts=4, shared=shared).student
    roles = {group.role for group in inspect(student).groups}
    assert "experts" in roles
    for grown in (
        widen(student, factor=1.5), widen(student, sizes={"experts": "2x"}), deepen(student, depth=2),
    ):  # fmt: skip
        assert grown.student.parameters > student.parameters
        assert_close(run(weighty(grown.student), feeds())[0], run(proto, feeds())[0], "grown", 1e-4)


def test_the_record_makes_it_again(tmp_path):
    teacher, student, again = (tmp_path / name for name in ("teacher.onnx", "student.onnx", "again/student.onnx"))
    onnx.save(dense("relu"), teacher)
    again.parent.mkdir()
    upcycle(teacher, experts=4, k=2, shared=True, seed=3).student.save(student)
    replay(teacher, steps_of(student), again)
    assert again.read_bytes() == student.read_bytes()


def test_one_wrong_weight_is_found_by_the_record(tmp_path):
    teacher, student = tmp_path / "teacher.onnx", tmp_path / "student.onnx"
    onnx.save(dense("relu"), teacher)
    upcycle(teacher, experts=4).student.save(student)
    assert verify(teacher, student).equivalent
    proto = onnx.load(student)
    router = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("router.weight"))
    values = onnx.numpy_helper.to_array(router).copy()
    values[0, 0] += 1  # no output shows it: whatever is chosen computes the same
    router.CopyFrom(onnx.numpy_helper.from_array(values, router.name))
    assert not verify(teacher, proto).equivalent


def test_blocks_in_a_row_share_no_layer():
    text = "a = MatMul(x, up) b = Relu(a) c = MatMul(b, down) e = Relu(c) f = MatMul(e, up2) h = Relu(f) "
    text += "m = MatMul(h, down2)"
    rng = np.random.default_rng(0)
    more = {"up2": rng.normal(size=(D, H)), "down2": rng.normal(size=(H, D))}
    proto = dense(text, **{name: array.astype(np.float32) for name, array in more.items()})
    upcycling = upcycle(proto, experts=3)
    assert len(upcycling.mixtures) == 2
    assert_close(run(weighty(upcycling.student), feeds())[0], run(proto, feeds())[0], "row", 1e-5)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (4, 5), (4, 0)])
def test_numbers_that_make_no_sense_are_bad_input(experts, k):
    with pytest.raises(BadInputError, match="experts must be at least 2"):
        upcycle(dense("relu"), experts=experts, k=k)


def test_what_could_not_learn_or_not_be_exact_is_refused():
    with pytest.raises(RefusedError, match="always 1 and never has a gradient"):
        upcycle(dense("relu"), experts=4, k=1)
    with pytest.raises(RefusedError, match="no feed-forward block"):
        upcycle(dense("m = MatMul(x, square)", square=np.ones((D, D), np.float32)), experts=4)
    text = "u = MatMul(x, up) b = Add(u, by_position) h = Relu(b) m = MatMul(h, down)"
    uneven = dense(text, by_position=np.ones((12, H), np.float32))
    with pytest.raises(RefusedError, match="by_position, which Add reads, is no vector of units"):
        upcycle(uneven, experts=4)
    with pytest.raises(RefusedError, match="'down' cannot become experts: by_position"):
        upcycle(uneven, experts=4, only=["down"])
    with pytest.raises(BadInputError, match="no block is named 'nothing'"):
        upcycle(dense("relu"), experts=4, only=["nothing"])


def test_experts_and_routers_learn_within_two_steps():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx2fx")
    from onnx_net2net import to_torch

    for shared in (False, True):
        module = to_torch(weighty(upcycle(dense("gated"), experts=4, shared=shared).student))
        stacked = {name: value for name, value in module.named_parameters() if "router" in name or "experts" in name}
        assert len(stacked) == 4
        largest = {name: torch.zeros(4) for name in stacked}
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        target = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            optimizer.zero_grad()
            result = module(torch.tensor(feeds()["inputs"]))
            result = result[0] if isinstance(result, (tuple, list)) else result
            ((result - target) ** 2).mean().backward()
            for name, value in stacked.items():
                rows = value.grad.movedim(-1 if "router" in name else 0, 0).reshape(4, -1)
                largest[name] = torch.maximum(largest[name], rows.abs().amax(1))
            optimizer.step()
        assert all((found > 1e-8).all() for found in largest.values()), largest


def test_calibrated_routers_use_all_experts_where_inputs_have_much_in_common(tmp_path, capsys):
    rng = np.random.default_rng(0)
    proto = dense("relu", first=rng.normal(size=(6, D)).astype(np.float32) / 9)
    given = {"inputs": (rng.normal(size=(2, 12, 6)) + 8).astype(np.float32)}
    teacher, data, student = (tmp_path / name for name in ("teacher.onnx", "data.npz", "student.onnx"))
    onnx.save(proto, teacher)
    np.savez(data, **given)
    tokens = np.tanh(given["inputs"].reshape(-1, 6) @ weights(load(teacher))["first"])
    most = {}
    for name, calibrate in (("plain", None), ("calibrated", data)):
        found = upcycle(teacher, experts=6, calibrate=calibrate).student
        router = next(array for key, array in weights(found).items() if key.endswith("router.weight"))
        choices = np.argsort(-(tokens @ router), axis=1)[:, :2]
        most[name] = np.bincount(choices.reshape(-1), minlength=6).max() / choices.size
        if calibrate is not None:
            assert np.abs(tokens.mean(0) @ router).max() < 1e-6
        assert_close(run(weighty(found), given)[0], run(proto, given)[0], name, 1e-5)
    assert most["calibrated"] < most["plain"]
    asked = ["upcycle", str(teacher), "-o", str(student), "--experts", "6", "--calibrate", str(data)]
    assert main(asked) == 0, capsys.readouterr().err
    with pytest.raises(BadInputError, match="calibrated on data"):
        steps_of(student)
