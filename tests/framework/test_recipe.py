"""The recipe: rates follow from how much each weight grew, and torch's optimizers take the groups."""

import itertools
import json

import numpy as np
import pytest
from graphs import net

from onnx_net2net.framework.recipe import ADVICE, WARMUP, GrownWeight, next_steps, recipe, recipe_of
from onnx_net2net.operations.transfer.transfer import transfer


def perceptron(widths, seed):
    rng = np.random.default_rng(seed)
    sizes = list(itertools.pairwise(widths))
    lines = [f"h{n} = MatMul (r{n}, w{n})\n    r{n + 1} = Relu (h{n})" for n in range(len(sizes))]
    text = (
        f"(float[B, {widths[0]}] r0) => (float[B, {widths[-1]}] r{len(sizes)}) {{\n    " + "\n    ".join(lines) + "\n}"
    )
    return net(text, **{f"w{n}": rng.normal(size=size).astype(np.float32) for n, size in enumerate(sizes)})


WEIGHTS = [
    GrownWeight("embed", 2, 100, 1.0),
    GrownWeight("fc.weight", 2, 1000, 2.0),
    GrownWeight("fc.bias", 1, 10, 1.0),
    GrownWeight("head.weight", 2, 50, 4.0),
]


def test_matrices_learn_more_slowly_by_what_they_read():
    found = recipe(WEIGHTS)
    assert found.adam == 0.5
    assert found.sgd == 1.0
    assert found.scales == {"fc.weight": 0.5, "head.weight": 0.25}


def test_convolutions_keep_the_rate():
    assert recipe([GrownWeight("conv", 4, 1000, 2.0), GrownWeight("fc", 2, 10, 2.0)]).adam == 1.0


def test_twice_the_depth_is_half_the_rate():
    found = recipe(WEIGHTS, depth=2.0)
    assert found.adam == 0.25
    assert found.scales["embed"] == 0.5
    assert recipe([], depth=2.0).adam == 0.5


def test_carried_moments_need_no_warmup():
    assert recipe(WEIGHTS).warmup == WARMUP
    assert recipe(WEIGHTS, carried=True).warmup == 0
    assert "no warmup" in next_steps(recipe(WEIGHTS, carried=True))


def test_groups_are_what_optimizers_take():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    found = recipe([GrownWeight("0.weight", 2, 16, 2.0)])
    optimizer = torch.optim.AdamW(found.groups(module.named_parameters(), 1e-2))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(module[0].weight)] == 5e-3
    assert rates[id(module[1].weight)] == 1e-2
    assert len(rates) == 4


def test_json_has_all_of_it():
    made = json.loads(json.dumps(recipe(WEIGHTS).as_dict()))
    assert made["peak_rate"]["adam"] == 0.5
    assert {"rate": 0.25, "parameters": ["head.weight"]} in made["groups"]
    assert len(made["advice"]) == len(ADVICE)
    assert all(line["evidence"] for line in made["advice"])


def test_a_filled_target_learns_by_how_much_it_is_wider_and_deeper():
    """A perceptron of twice the hidden units and one more layer, and back."""
    teacher, wide = perceptron([8, 16, 16, 4], 0), perceptron([8, 32, 32, 32, 4], 1)
    found = recipe_of(transfer(teacher, wide, prove=False))
    matrices = found.scales
    layers = 4 / 3
    assert sorted(matrices.values()) == pytest.approx(sorted([1 / layers, *[0.5 / layers] * 2]), abs=1e-3)
    assert found.adam == pytest.approx(0.5 / layers, abs=1e-3)
    assert recipe_of(transfer(wide, teacher, prove=False)).adam == 1.0
