"""Which rule speaks for an operator, and what happens without one."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse_open, growable
from onnx import helper
from operators import FLOAT, Case, Registry

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.model.model import load
from onnx_net2net.rules import lookup, rule, signature, supported
from onnx_net2net.rules.op import Op


def speaker(domain: str, kind: str, version: int) -> str | None:
    """The last word of the reason that the rule froze its dims with, to tell which spoke."""
    found = lookup(domain, kind, version)
    dim = Dim(2)
    if found is not None:
        found(Op(kind, "", [(dim,)], [(Dim(2),)], domain=domain, version=version))
    return (dim.frozen or "").split()[-1] if found is not None else None


@pytest.mark.usefixtures("registry")
def test_the_newest_rule_that_fits_the_opset_is_used() -> None:
    rule("Mine", domain="my.company", since=3)(lambda op: op.freeze_all("new"))
    rule("Mine", domain="my.company")(lambda op: op.freeze_all("old"))
    assert [speaker("my.company", "Mine", version) for version in (0, 1, 2, 3, 9)] == [None, "old", "old", "new", "new"]
    assert lookup("", "Mine", 9) is None
    assert [entry[2] for entry in supported() if entry[1] == "Mine"] == [1, 3]


@pytest.mark.usefixtures("registry")
def test_a_later_registration_replaces_the_rule_of_the_same_version() -> None:
    rule("Relu")(lambda op: op.freeze_all("mine"))
    assert speaker("ai.onnx", "Relu", 13) == "mine"


@pytest.mark.usefixtures("registry")
def test_a_signature_is_a_rule() -> None:
    signature("MyLinear", "*b k, n k -> *b n", domain="my.company", scales=(1,), pointwise="zero")
    x, w, y = (Dim(2), Dim(7), Dim(3)), (Dim(5), Dim(3)), (Dim(2), Dim(7), Dim(5))
    op = Op("MyLinear", "node", [x, w], [y], domain="my.company")
    lookup("my.company", "MyLinear", 1)(op)  # type: ignore[misc]
    (contraction,) = op.said.contractions
    assert contraction.sides == ((0, 2), (1, 1))
    assert op.said.scales == {1}
    assert op.said.pointwise == "zero"


def test_operators_without_a_rule_freeze_their_dims_and_say_how_to_add_one(registry: Registry) -> None:
    del registry["", "Relu"]
    row = Case("Relu", helper.make_node("Relu", ["x"], ["y"]), 14, {"x": np.ones((2, 3), FLOAT)}, frozenset())
    analysis = analyse_open(load(row.model()[0]))
    assert not growable(analysis)
    for dim in analysis.dims():
        assert "'y' has no growth rule (Relu, opset 14" in (dim.frozen or "")
        assert "onnx_net2net.rules.rule" in (dim.frozen or "")
