"""Every operator of ai.onnx that the installed onnx knows has a growth rule, or a line that says why it has none."""

import pytest
from graphs import needs
from onnx import defs

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.rules import lookup, supported
from onnx_net2net.rules.fixed import FIXED
from onnx_net2net.rules.op import Op

CONTROL_FLOW = ("If", "Loop", "Scan")
"""Operators with bodies, which are opened before rules are asked."""

LEGACY = ("Affine", "Crop", "DynamicSlice", "ImageScaler", "ParametricSoftplus", "Scale", "ScaledTanh")
"""Operators without a schema that onnxruntime still runs up to opset 9."""

FIRST_OPSET = 7  # before it, broadcasting was another


def versions():
    """(operator, opset) at each opset that changed an operator, from the first that onnxruntime runs."""
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name not in CONTROL_FLOW:
            yield schema.name, max(schema.since_version, FIRST_OPSET)


@pytest.mark.parametrize("kind", sorted({name for name, _ in versions()}))
def test_every_operator_has_a_rule_or_a_reason(kind):
    for name, opset in versions():
        if name == kind and not _is_removed(kind, opset):
            assert lookup("", kind, opset), f"{kind}-{opset} has no rule and is not in onnx_net2net.rules.fixed.FIXED"


def _is_removed(kind, opset):
    return not defs.has(kind, opset, "")


@pytest.mark.parametrize("kind", LEGACY)
def test_operators_from_before_opset_10_have_one_too(kind):
    assert lookup("", kind, FIRST_OPSET)


@pytest.mark.parametrize("kind", FIXED)
def test_a_fixed_operator_is_one_and_has_no_other_rule(kind):
    if kind not in LEGACY:
        needs(defs.has(kind), f"operator {kind}")
    assert [since for domain, name, since in supported() if (domain, name) == ("", kind)] == [1]


@pytest.mark.parametrize("kind", FIXED)
def test_a_fixed_operator_says_why(kind):
    x, y = (Dim(2), Dim(3)), (Dim(5),)
    op = Op(kind, "head/1", [x, None], [y])
    lookup("", kind, 99)(op)
    for dim in (*x, *y):
        assert dim.frozen == f"{kind} 'head/1' has no growth rule: {FIXED[kind]}"
