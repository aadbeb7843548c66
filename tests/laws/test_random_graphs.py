"""Random networks whose students compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from glob import escape
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import assert_close, build, run, weighty
from hypothesis import event, given, settings, strategies as st
from onnx.reference import ReferenceEvaluator
from random_nets import IMAGE, VECTOR, Net, network

from onnx_net2net import Widening, deepen, inspect, narrow, widen
from onnx_net2net.analysis.activations import WAYS as INSERTIONS
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.history import grown_interface


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], widening: Widening) -> bool:
    """Assert that teacher and student agree, whatever new inputs hold; tell whether anything grew."""
    expected, rng = run(proto, feeds), np.random.default_rng(widening.seed)
    grown = grown_interface(widening.teacher, widening.student)
    for (name, axis), (old, new) in grown.items():
        if name in feeds:
            shape = [new - old if position == axis else size for position, size in enumerate(feeds[name].shape)]
            more = (100 * rng.standard_normal(shape)).astype(feeds[name].dtype)
            feeds = {**feeds, name: np.concatenate([feeds[name], more], axis)}
    results = run(weighty(widening.student), feeds)
    for output, result, wanted in zip(proto.graph.output, results, expected, strict=True):
        for axis in range(wanted.ndim):
            if (output.name, axis) in grown:
                result = np.take(result, range(wanted.shape[axis]), axis)
        assert_close(result, wanted, output.name, 1e-4, floor=0.01)  # a mean behind a normaliser is 0 but for noise
    return any(change.new > change.old for change in widening.changes)


def widened(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: Any) -> bool:
    """Check a student, or that there is a reason for none; tell whether anything grew."""
    try:
        widening = widen(proto, **options)
    except RefusedError as refusal:  # nothing in it can grow, or not by that
        reason = str(refusal)
    else:
        return check(proto, feeds, widening)
    assert reason
    return False


FACTORS = (1.3, 1.5, 2.0, 2.7)


def by_factor(seed: int, **blocks: Any) -> bool:
    return widened(*network(seed, **blocks), factor=FACTORS[seed % len(FACTORS)], seed=seed)


def by_sizes(seed: int, **blocks: Any) -> bool:
    """Grow every dim that may, all factors of a product at once, to odd sizes."""
    proto, feeds = network(seed, **blocks)
    rng = np.random.default_rng(seed)
    free = [group for group in inspect(proto).groups if group.reason is None]
    if not free:
        return False
    sizes = {
        escape(group.name): group.size * 2 if group.is_uniform else group.size + int(rng.integers(1, group.size + 2))
        for group in free
        if rng.random() < 0.7
    } or {escape(free[0].name): 2 * free[0].size}
    return check(proto, feeds, widen(proto, sizes=sizes, seed=seed))


def by_weighing(seed: int, **blocks: Any) -> bool:
    """Grow behind norms to widths that are no multiples."""
    blocks = blocks or {"vectors": ["layer_norm_node", "linear", "layer_norm_node"]}
    proto, feeds = network(seed, opsets=(17, 20), **blocks)
    return widened(proto, feeds, factor=(1.37, 1.7, 2.4)[seed % 3], fill_norms=True, seed=seed)


def by_interface(seed: int, **blocks: Any) -> bool:
    """Grow classes and input channels beside the old ones, and hidden units with them."""
    proto, feeds = network(seed, **blocks)
    rng = np.random.default_rng(seed)
    asked = [group for group in inspect(proto).groups if group.on_request]
    if not asked:
        return False
    chosen = asked if rng.random() < 0.2 else [asked[rng.integers(len(asked))]]
    sizes = {escape(group.name): group.size + int(rng.integers(1, 4)) for group in chosen}
    factor = FACTORS[seed % len(FACTORS)] if rng.random() < 0.5 else None
    return widened(proto, feeds, sizes=sizes, factor=factor, seed=seed)


WAYS = (by_factor, by_sizes, by_weighing, by_interface)


def most(results: list[bool]) -> bool:
    return sum(results) >= 0.8 * len(results)


@pytest.mark.parametrize("chunk", range(8))
def test_random_networks_widened_by_a_factor_compute_the_same(chunk: int) -> None:
    assert most([by_factor(seed) for seed in range(chunk, 160, 8)])


@pytest.mark.parametrize("chunk", range(8))
def test_random_networks_widened_to_random_sizes_compute_the_same(chunk: int) -> None:
    assert most([by_sizes(seed) for seed in range(1000 + chunk, 1160, 8)])


@pytest.mark.parametrize("chunk", range(2))
def test_random_networks_with_weighed_norms_have_any_width(chunk: int) -> None:
    assert most([by_weighing(seed) for seed in range(3000 + chunk, 3040, 2)])


@pytest.mark.parametrize("chunk", range(2))
def test_random_networks_with_new_inputs_and_outputs_keep_the_old_ones(chunk: int) -> None:
    assert most([by_interface(seed) for seed in range(4000 + chunk, 4060, 2)])


@pytest.mark.parametrize("map", ["zero_out", "zero_in"])
def test_random_networks_with_units_of_their_own_compute_the_same(map: str) -> None:
    for seed in range(2000, 2040):
        widened(*network(seed), factor=1.5, map=map, seed=seed)


def test_a_student_can_be_widened_again() -> None:
    proto, feeds = network(7)
    once = widen(proto, factor=1.5, seed=1)
    twice = widen(weighty(once.student), factor=1.5, seed=2)
    check(proto, feeds, once)
    check(proto, feeds, twice)


def test_a_student_can_be_narrowed() -> None:
    narrowed = 0
    for seed in range(20):
        proto, feeds = network(seed)
        try:
            student = widen(proto, factor=1.6, seed=seed).student
            less = narrow(student).student
        except RefusedError:
            continue
        assert less.parameters < student.parameters
        for output, result, wanted in zip(
            proto.graph.output, run(weighty(less), feeds), run(proto, feeds), strict=True
        ):
            assert_close(result, wanted, output.name, 1e-4, floor=0.01)
        narrowed += 1
    assert narrowed > 10


def deepened(seed: int, options: dict[str, Any]) -> bool:
    """Whether a random network can be deepened so; it computes the same, and narrow is right about it too."""
    proto, feeds = network(seed)
    try:
        student = deepen(proto, seed=seed, **options).student
    except RefusedError:
        return False
    models = [weighty(student)]
    with contextlib.suppress(RefusedError):  # there may be nothing that can be taken out again
        models.append(weighty(narrow(student).student))
    wanted = run(proto, feeds)
    for model in models:
        for output, result, expected in zip(proto.graph.output, run(model, feeds), wanted, strict=True):
            assert_close(result, expected, output.name, 1e-4, floor=0.01)
    return True


DEEPER: list[dict[str, Any]] = [
    *({"all": True, "way": way} for way in (None, *INSERTIONS)),
    {"all": True, "count": 2},
    {"all": True, "width": "1.5x"},
    {"depth": 2},
    {"depth": 2, "way": "cancel", "append": True},
]


@pytest.mark.parametrize("options", DEEPER, ids=str)
def test_random_networks_that_are_deeper_compute_the_same(options: dict[str, Any]) -> None:
    assert sum(deepened(seed, options) for seed in range(5000, 5005)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("options", DEEPER, ids=str)
def test_many_random_networks_that_are_deeper_compute_the_same(options: dict[str, Any]) -> None:
    assert sum(deepened(seed, options) for seed in range(6000, 6030)) > 5


def test_doubles_agree_to_twelve_digits() -> None:
    for seed in range(6):
        proto, feeds = network(seed, np.float64)
        student = weighty(widen(proto, factor=1.5, seed=seed).student)
        results = (ReferenceEvaluator(model).run(None, feeds) for model in (student, proto))
        for result, wanted in zip(*results, strict=True):
            assert_close(result, wanted, f"network {seed}", 1e-12)


@pytest.mark.parametrize("name", IMAGE)
def test_each_block_on_images_lets_something_grow(name: str) -> None:
    net = Net(np.random.default_rng(3), opset=13)
    net.channels["x"], net.side["x"] = 3, 4
    x = IMAGE[name](net, net.act(net.conv("x", 4)))
    y = net.conv(x, 2)
    feeds = {"x": net.rng.standard_normal((2, 3, 4, 4)).astype(np.float32)}
    proto = build(net.nodes, feeds, [y], net.constants, opset=13)
    assert check(proto, feeds, widen(proto, factor=2))


@pytest.mark.parametrize("name", VECTOR)
def test_each_block_on_vectors_lets_something_grow(name: str) -> None:
    net = Net(np.random.default_rng(3), opset=13)
    net.channels["x"] = 3
    y = net.linear(VECTOR[name](net, net.act(net.linear("x", 5))), 2)
    feeds = {"x": net.rng.standard_normal((2, 3)).astype(np.float32)}
    proto = build(net.nodes, feeds, [y], net.constants, opset=13)
    assert check(proto, feeds, widen(proto, factor=2))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_many_random_networks_compute_the_same(chunk: int) -> None:
    for seed in range(10_000 + chunk, 10_400, 10):
        for number, way in enumerate(WAYS):
            way(seed + 10_000 * number)


@pytest.mark.slow
@settings(max_examples=700, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**20), st.sampled_from(WAYS), st.lists(st.sampled_from(list(IMAGE)), max_size=5),
    st.lists(st.sampled_from(list(VECTOR)), max_size=4),
)  # fmt: skip
def test_networks_of_any_blocks_compute_the_same(
    seed: int, way: Callable[..., bool], images: list[str], vectors: list[str]
) -> None:
    event(f"{way.__name__}: {'grew' if way(seed, images=images, vectors=vectors) else 'refused'}")


@pytest.mark.parametrize(
    ("kind", "constant"),
    [
        ("Add", 1),
        ("Sub", 1),
        ("Mul", 3),
        ("Sum", 1),
        ("Mean", 1),
        ("Max", -1),
        ("Min", 1),
        ("Max", 1),
        ("Min", -1),
    ],
)
def test_units_of_zeros_stay_exact_behind_a_constant(kind: str, constant: float) -> None:
    net = Net(np.random.default_rng(0), opset=13)
    net.channels["x"] = 4
    hidden = net.node(kind, net.node("Tanh", net.linear("x", 8)), net.scalar(constant))
    y = net.linear(hidden, 3)
    feeds = {"x": net.rng.standard_normal((2, 4)).astype(np.float32)}
    proto = build(net.nodes, feeds, [y], net.constants, opset=13)
    try:
        widening = widen(proto, factor=1.5, map="zero_in")
    except RefusedError:
        return
    assert check(proto, feeds, widening)
