"""What a rule overlooks freezes: attributes and operands that it does not know."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from typing import Any

import onnx
import pytest
from graphs import analyse_open, growable
from onnx import defs, helper
from operators import NEVER_FREE, TABLE, Case, backend_cases

from onnx_net2net.algebra.dims import Dim, leaves
from onnx_net2net.analysis import inference
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.model.model import load
from onnx_net2net.rules import inert, lookup, rule, signature
from onnx_net2net.rules.op import Op

ENOUGH = 100  # cases of an operator, from which what its rule reads is told


def _analysed(node: onnx.NodeProto, row: Case) -> Analysis:
    model = row.model()[0]
    model.graph.node[0].CopyFrom(node)
    return analyse_open(load(model))


def _odd(attribute: defs.OpSchema.Attribute) -> Any:
    """A value that no default is."""
    kind = attribute.type.name
    value = {"INT": 3, "FLOAT": 0.123, "STRING": "odd"}.get(kind.removesuffix("S"))
    return [value] if kind.endswith("S") and value is not None else value


def test_what_a_newer_operator_set_brings_freezes_until_a_rule_declares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk all schemas of the installed onnx; this says which attributes and operands no rule declares yet."""
    seen: dict[str, list[Op]] = defaultdict(list)

    class Noted(Op):
        def __init__(self, kind: str, *args: Any, **options: Any) -> None:
            super().__init__(kind, *args, **options)
            seen[kind].append(self)

    monkeypatch.setattr(inference, "Op", Noted)
    rows: dict[str, list[Case]] = defaultdict(list)
    for row in (*TABLE, *(row for cases in backend_cases().values() for row in cases)):
        if len(seen[row.node.op_type]) < ENOUGH:
            with contextlib.suppress(Exception):  # neither onnxruntime nor the reference runs it
                rows[row.node.op_type].append(row) if growable(analyse_open(load(row.model()[0]))) else None
    new = []
    for schema in defs.get_all_schemas_with_history():
        kind, ops = schema.name, seen[schema.name]
        if schema.domain or kind in NEVER_FREE or not rows[kind] or schema.since_version < 7:
            continue
        asked = inert.table().get(("", kind), set()).union(*(op.attrs.asked for op in ops))
        new += [(kind, name, attribute) for name, attribute in schema.attributes.items() if name not in asked]
        read = {("input", index) for op in ops for index in op.read_inputs}
        read |= {("output", index) for op in ops for index in op.read_outputs}
        operands = [("input", k, part) for k, part in enumerate(schema.inputs)]
        operands += [("output", k, part) for k, part in enumerate(schema.outputs)]
        for what, index, part in operands:
            if (what, index) not in read and part.option != defs.OpSchema.FormalParameterOption.Variadic:
                warnings.warn(
                    f"the rule of {kind}-{schema.since_version} overlooks its {what} {part.name}", stacklevel=1
                )
    for kind, name, attribute in new:
        warnings.warn(f"the rule of {kind} does not know its attribute {name}", stacklevel=1)
        row = rows[kind][0]
        node = onnx.NodeProto()
        node.CopyFrom(row.node)
        node.attribute.append(helper.make_attribute(name, _odd(attribute)))
        assert not growable(_analysed(node, row)), f"{kind} grows with an unknown {name}"


def grown_with(kind: str, *operands: Any, **options: Any) -> dict[int, str | None]:
    """The reasons of the dims of a node by their sizes, None where they may grow."""
    attrs, outputs = options.pop("attrs", {}), options.pop("outputs", [(2, 3)])
    dims = [tuple(map(Dim, shape)) for shape in (*operands, *outputs)]
    op = Op(kind, "node", dims[: len(operands)], dims[len(operands) :], attrs=attrs, **options)
    lookup(op.domain, kind, op.version)(op)  # type: ignore[misc]
    return {dim.size: dim.frozen for axes in dims for axis in axes for dim in leaves(axis)}


def test_an_attribute_that_a_rule_does_not_know_freezes_the_node() -> None:
    assert grown_with("Relu", (2, 3)) == {2: None, 3: None}
    (reason,) = set(grown_with("Relu", (2, 3), attrs={"novelty": 1}).values())
    assert reason is not None
    assert reason.startswith("Relu 'node' has the attribute 'novelty', which its growth rule does not read")
    assert grown_with("Elu", (2, 3), attrs={"alpha": 0.5}) == {2: None, 3: None}


def test_an_attribute_that_is_the_default_of_the_schema_is_none() -> None:
    assert grown_with("SpaceToDepth", (2, 3, 10, 14), outputs=[(2, 12, 5, 7)], attrs={"blocksize": 2})[3] is None
    attrs = {"noop_with_empty_axes": 0, "keepdims": 1, "axes": [1]}
    assert grown_with("ReduceProd", (2, 3), outputs=[(2, 1)], version=18, attrs=attrs)[2] is None


def test_an_operand_that_a_rule_does_not_know_freezes_the_node() -> None:
    (reason,) = set(grown_with("Relu", (2, 3), (2, 3), (5,)).values())
    assert "has the input 2, which its growth rule does not read" in (reason or "")
    (reason,) = set(grown_with("Relu", (2, 3), outputs=[(2, 3), (5,)]).values())
    assert "has the output 1, which its growth rule does not read" in (reason or "")


@pytest.mark.usefixtures("registry")
def test_attributes_of_ones_own_operator_are_read_or_inert() -> None:
    signature("Mine", "*b c -> *b c", domain="my.company", inert="gain name")
    own = {"domain": "my.company"}
    assert grown_with("Mine", (2, 3), attrs={"gain": 2.0, "name": "a"}, **own) == {2: None, 3: None}
    assert all(grown_with("Mine", (2, 3), attrs={"group": 2}, **own).values())

    @rule("Mine", domain="my.company")
    def mine(op: Op) -> None:
        op.apply("*b c -> *b c", fixed="c" if op.attrs.get("group") else "")

    assert grown_with("Mine", (2, 3), attrs={"group": 2}, **own)[2] is None
    assert "see `inert`" in str(grown_with("Mine", (2, 3), attrs={"group": 2, "gain": 2.0}, **own)[2])
