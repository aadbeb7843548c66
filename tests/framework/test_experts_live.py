"""Copies of experts learn: every expert and every row of the router has a gradient within two steps."""

import numpy as np
import pytest
from graphs import weighty
from moe import DISPATCHES, LOOKED_UP, ROUTERS, E, apart, constants, feeds, moe

from onnx_net2net import widen

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2fx")

from onnx_net2net import to_torch  # noqa: E402

BIAS = constants()["bias"] / 10
"""With so small a bias the teacher chooses each of its experts for some token."""


def gradients(proto, **options):
    """The largest gradient of each expert in the first two steps, by parameter."""
    student = weighty(widen(proto, sizes={"experts": "2x"}, **options).student)
    module = to_torch(student)
    names = {name: path for path, name in module.meta["onnx"].items()} if "onnx" in module.meta else {}
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    found = {name: np.zeros(2 * E) for name in ("router", "up", "down")}
    given = torch.tensor(feeds()["inputs"])
    target = torch.randn(24, 7, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        result = module(given)
        result = result[0] if isinstance(result, (tuple, list)) else result
        ((result - target) ** 2).mean().backward()
        for name, largest in found.items():
            own = parameters[names.get(name, name)].grad
            np.maximum(largest, own.abs().amax(dim=tuple(range(1, own.ndim))).numpy(), out=largest)
        optimizer.step()
    return found


@pytest.mark.parametrize("how", ["split", "topk", "granular"])
@pytest.mark.parametrize(
    ("router", "dispatch"),
    [("softmax, top-k, normed", "looked up"), ("sigmoid, bias", "looked up"), ("top-k, softmax", "scattered")],
)
def test_every_copy_and_every_row_of_the_router_has_a_gradient(router, dispatch, how):
    for name, largest in gradients(moe(ROUTERS[router], DISPATCHES[dispatch], bias=BIAS), how=how).items():
        assert (largest > 0).all(), (name, largest)


def test_lifted_copies_have_none_until_their_bias_rises():
    found = gradients(moe(ROUTERS["sigmoid, bias"], LOOKED_UP, bias=BIAS), how="lift")
    assert (found["down"][:E] > 0).all()
    assert not found["down"][E:].any()


@pytest.mark.parametrize("kind", ["masked", "picked rows"])
def test_copies_of_modules_learn_at_the_first_step(kind):
    student = widen(moe(ROUTERS["softmax, top-k, normed"], apart(kind)), sizes={"experts": "2x"}).student
    module = to_torch(weighty(student))
    result = module(torch.tensor(feeds()["inputs"]))
    result = result[0] if isinstance(result, (tuple, list)) else result
    (result**2).mean().backward()
    learnt = {name: value.grad for name, value in module.named_parameters() if name.startswith(("up", "down", "shift"))}
    assert len(learnt) == 3 * 2 * E
    assert all(gradient is not None and gradient.any() for gradient in learnt.values())
