"""A rule is a claim, op(E·x) = E·op(x), so it is tested without a model.

Each case is one operator whose inputs and outputs may all grow. Random maps are drawn for the dims that its rule
leaves free, the node is rewritten by them, and both are run: the grown operator on grown inputs has to give the grown
output. Cases are the operators' own from `onnx.backend.test`, and the table in `operators.py`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import LAST_OPSET, analyse_open, build, conform, run
from onnx import defs, helper
from operators import BACKEND_PROBLEMS, FLOAT, NEVER_FREE, PARAMETERS, TABLE, Case, backend_cases

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.model.model import load
from onnx_net2net.rules import lookup, supported
from onnx_net2net.rules.fixed import FIXED


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=pytest.mark.xfail(strict=True, reason=row.problem) if row.problem else ())
        for row in TABLE
    ],
)
def test_a_grown_operator_computes_grown_outputs(row: Case) -> None:
    rng = np.random.default_rng(7)
    for _ in range(2):
        conform(*row.model(rng), rng)
    assert row.free_sizes() == row.free


LARGEST = 2**63 - 1
PLACES = (0, 1, 4, 6, 7, LARGEST, -1, -4, -6, -7, -LARGEST)
STEPS = (1, 2, 3, -1, -2)


def _many(nodes: dict[str, onnx.NodeProto], array: np.ndarray, opset: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """One model of independent nodes, each with an input of its own, with constants by the names that nodes read."""
    feeds = {f"x {name}": array for name in nodes}
    read = {name for node in nodes.values() for name in node.input} - set(feeds)
    constants = {name: np.array([int(number) for number in name.split(",")], np.int64) for name in read if name}
    return build(nodes.values(), feeds, [node.output[0] for node in nodes.values()], constants, opset=opset), feeds


@pytest.mark.parametrize("form", ["inputs", "attributes", "two axes"])
def test_a_range_means_the_same_units_however_its_ends_are_written(form: str) -> None:
    """All signs, steps, and places beyond the ends, each on an axis of 6 units that grows."""
    nodes, sizes = {}, {}
    for start, end, step in itertools.product(PLACES, PLACES, STEPS):
        taken = len(range(6)[start:end:step])
        if not taken or (form == "attributes" and step != 1) or (form == "two axes" and step not in (1, 2)):
            continue
        name = f"[{start}:{end}:{step}]"
        places = {"starts": [start], "ends": [end], "axes": [1]}
        if form == "attributes":
            nodes[name] = helper.make_node("Slice", [f"x {name}"], [f"y {name}"], **places)
        else:
            both = (f"-1,{start}", f"{LARGEST},{end}", "", f"1,{step}")
            given = both if form == "two axes" else (str(start), str(end), "-2", str(step))
            nodes[name] = helper.make_node("Slice", [f"x {name}", *given], [f"y {name}"])
        sizes[name] = taken
    proto, feeds = _many(nodes, np.random.default_rng(0).random((2, 6, 3), FLOAT), 9 if form == "attributes" else 18)
    conform(proto, feeds, np.random.default_rng(1))
    analysis = analyse_open(load(proto))
    for name, taken in sizes.items():
        step = int(name.strip("[]").split(":")[2])
        if f"y {name}" not in analysis.axes:  # onnx infers no shape from an attribute in front of the axis
            continue
        is_free = any(not dim.frozen for dim in leaves(analysis.axes[f"y {name}"][1]))
        assert is_free == (taken > 1 and (form != "two axes" or step == 1 or taken * step == 6)), name


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.xfail(strict=True, reason=BACKEND_PROBLEMS[kind]))
        if kind in BACKEND_PROBLEMS
        else kind
        for kind in dict.fromkeys(kind for domain, kind, _ in supported() if not domain)
        if kind not in ("Shape", "Size", "Constant")  # no activation follows their inputs
    ],
)
def test_the_operators_own_cases_hold_when_grown(kind: str) -> None:
    rng = np.random.default_rng(11)
    for row in backend_cases().get(kind, ()):
        try:
            proto, feeds = row.model(rng)
        except Exception:  # neither onnxruntime nor the reference runs it ungrown
            continue
        try:
            conform(proto, feeds, rng)
        except Exception as error:
            raise AssertionError(f"{row.name}: {error}") from error


def _free_or_empty(row: Case) -> frozenset[int]:
    try:
        return row.free_sizes()
    except Exception:  # neither onnxruntime nor the reference runs it
        return frozenset()


def test_every_rule_is_exercised_on_a_dim_that_grows() -> None:
    exercised = set()
    for row in (*TABLE, *(row for rows in backend_cases().values() for row in rows)):
        key = (row.node.op_type, lookup("", row.node.op_type, row.opset))
        if key in exercised:
            continue
        if row.free or (row.free is None and _free_or_empty(row)):
            exercised.add(key)
    for domain, kind, since in supported():
        if domain == "" and kind not in (*NEVER_FREE, *FIXED) and defs.has(kind, LAST_OPSET):
            assert (kind, lookup(domain, kind, since)) in exercised, f"no case grows {kind}-{since}"


@pytest.mark.parametrize("kind", dict.fromkeys(kind for domain, kind, _ in supported() if not domain))
def test_operators_said_to_keep_zero_do(kind: str) -> None:
    for row in backend_cases().get(kind, ()):
        try:
            proto, feeds = row.model()
        except Exception:  # neither onnxruntime nor the reference runs it
            continue
        said = analyse_open(load(proto)).said.get(0)
        if said is None or said.pointwise not in ("zero", "relu") or (row.fixed and kind not in PARAMETERS):
            continue
        first, *_ = run(proto, {name: np.zeros_like(array) for name, array in feeds.items()})
        assert not np.any(first), f"{row.name} says {said.pointwise!r}"
