"""Experts whose weights have large gradients get more copies; Adam's state tells them."""

import numpy as np
import onnx
import pytest
from moe import DISPATCHES, LOOKED_UP, ROUTERS, E, moe

torch = pytest.importorskip("torch")

from onnx_net2net import verify  # noqa: E402
from onnx_net2net.cli.main import main  # noqa: E402
from onnx_net2net.errors import BadInputError  # noqa: E402
from onnx_net2net.framework.utility import expert_utility  # noqa: E402
from onnx_net2net.operations.replay import steps_of  # noqa: E402
from onnx_net2net.operations.widen.load import copies_by_load  # noqa: E402

STACKS = ("up", "down", "shift")


def trained(proto):
    """A state dict that has the stack `up` in another layout, and the state of Adam."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    names = [name for name in ("first", "router", "bias", *STACKS, "head") if name in weights]
    tensors = {f"net.{name}": torch.tensor(weights[name]) for name in names}
    tensors["net.up"] = tensors["net.up"].transpose(1, 2).contiguous()
    generator = torch.Generator().manual_seed(0)
    squares = [torch.rand(tensor.shape, generator=generator) ** 4 for tensor in tensors.values()]
    for name, square in zip(names, squares, strict=True):
        if name in STACKS:
            square[1] *= 10
    state = {place: {"step": torch.tensor(3.0), "exp_avg": -value, "exp_avg_sq": value}
             for place, value in enumerate(squares)}  # fmt: skip
    return tensors, {"state": state, "param_groups": [{"params": list(range(len(squares)))}]}


def sums(tensors, optimizer):
    squares = dict(zip(tensors, (own["exp_avg_sq"] for own in optimizer["state"].values()), strict=True))
    total = sum(squares[f"net.{name}"].double().reshape(E, -1).sum(1) for name in STACKS)
    return (total / total.sum()).numpy()


@pytest.mark.parametrize("router", ["softmax, top-k, normed", "top-k, softmax"])
@pytest.mark.parametrize("dispatch", ["looked up", "scattered"])
def test_squares_of_all_weights_of_an_expert_are_added(router, dispatch):
    proto = moe(ROUTERS[router], DISPATCHES[dispatch])
    tensors, optimizer = trained(proto)
    (found,) = expert_utility(proto, tensors, {"optimizer": optimizer}).values()
    np.testing.assert_allclose(found, sums(tensors, optimizer), rtol=1e-5)


def test_the_command_gives_them_copies_and_the_record_has_the_numbers(tmp_path, capsys):
    teacher, student, weights, state = (tmp_path / name for name in ("teacher.onnx", "student.onnx", "w.pt", "o.pt"))
    proto = moe(ROUTERS["top-k, softmax"], LOOKED_UP)
    onnx.save(proto, teacher)
    tensors, optimizer = trained(proto)
    torch.save(tensors, weights)
    torch.save(optimizer, state)
    asked = ["--set", "experts=+3", "--utility", str(state), "--state-dict", str(weights)]
    assert main(["widen", str(teacher), "-o", str(student), *asked]) == 0, capsys.readouterr().err
    (loads,) = steps_of(student)[0]["loads"].values()
    np.testing.assert_allclose(loads, sums(tensors, optimizer), rtol=1e-5)
    assert verify(teacher, student).equivalent
    up = next(onnx.numpy_helper.to_array(t) for t in onnx.load(student).graph.initializer if t.name == "up")
    old = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}["up"]
    counts = [sum(np.array_equal(one, expert) for one in up) for expert in old]
    assert counts == copies_by_load(loads, E + 3).tolist()
    assert max(counts) > 2


def test_what_tells_nothing_of_experts_is_refused(tmp_path, capsys):
    proto = moe(ROUTERS["top-k, softmax"], LOOKED_UP)
    tensors, optimizer = trained(proto)
    momentum = {place: {"momentum_buffer": own["exp_avg"]} for place, own in optimizer["state"].items()}
    with pytest.raises(BadInputError, match="no means of squared gradients"):
        expert_utility(proto, tensors, {**optimizer, "state": momentum})
    onnx.save(proto, tmp_path / "teacher.onnx")
    torch.save(optimizer, tmp_path / "o.pt")
    asked = ["widen", str(tmp_path / "teacher.onnx"), "-o", str(tmp_path / "s.onnx"), "--set", "experts=2x"]
    assert main([*asked, "--utility", str(tmp_path / "o.pt")]) == 2
    assert "--state-dict" in capsys.readouterr().err
