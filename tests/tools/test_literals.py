"""Names of operators stay in `rules/`; what the tool counts is what a reader would."""

from __future__ import annotations

import ast

import literals
import pytest

OPERATORS = {"Add", "Mul", "Gather"}


def nodes(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


def test_there_are_few_names_of_operators_outside_of_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert literals.main() == 0, capsys.readouterr().out


def test_an_argument_of_a_call_is_told_apart() -> None:
    found = literals.literals(nodes('made = make("Add", x)\nis_sum = node.op == "Mul"'), OPERATORS)
    assert sorted(found) == [(1, "Add", True), (2, "Mul", False)]


def test_nodes_that_a_writer_writes_are_counted() -> None:
    text = "op = Writer(graph, name)\nop.Add(op.Mul(x, y), z)"
    assert literals.written(nodes(f"from edit import Writer\n{text}"), OPERATORS) == 2
    assert literals.written(nodes(text), OPERATORS) == 0


def test_a_module_that_asks_for_operators_is_noticed() -> None:
    assert literals.asks(nodes('node.op_type == "Add"'))
    assert not literals.asks(nodes('layer["class_name"] == "Add"'))
