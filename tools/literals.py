"""Count operator names that stand as string literals outside of `onnx_net2net.rules`.

Facts about operators live in the rules and in `onnx_net2net.rules.traits`. A name that is an argument of a call is told
apart: it says which node is made or handled, and asks nothing of a node that is there. Nodes that a `Writer` writes
(`op.Gather(table, places)`) have no literal, and are counted on a line of their own.

Some modules never see a node: what looks like an operator there is a name of something else, such as a class of Keras.
They stand in `OTHERS`, each with what its names are, and are printed apart, too. A module that asks for the operator of
anything cannot be one of them.

    python tools/literals.py [-v]        # -v also names each literal and its line
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx import defs

from onnx_net2net.rules import supported

PACKAGE = Path(__file__).resolve().parent.parent / "onnx_net2net"

TOO_MANY = 150
"""The names that a change may not come to: 637 there were before the rules had rooms of their own."""

OTHERS = {
    "framework/formats/keras_config.py": "classes of Keras",
    "framework/live/layers.py": "kinds of torch's recurrent layers",
    "framework/huggingface/distributed.py": "classes of torch that a pickle may name",
    "framework/planning.py": "classes of its own",
}
"""Modules that see no nodes, and what their names are instead."""


def literals(nodes: Sequence[ast.AST], operators: set[str]) -> Iterator[tuple[int, str, bool]]:
    """Yield each literal of a module that is an operator's name: its line, its text, whether it is an argument."""
    arguments = {id(argument) for node in nodes if isinstance(node, ast.Call) for argument in node.args}
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in operators:
            yield node.lineno, str(node.value), id(node) in arguments


def written(nodes: Sequence[ast.AST], operators: set[str]) -> int:
    """Return how many nodes a module writes as calls of a `Writer`, none where it does not import that."""
    imports = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    calls = [node.func for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return sum(call.attr in operators for call in calls) if "Writer" in imports else 0


def asks(nodes: Sequence[ast.AST]) -> bool:
    """Tell whether a module asks for the operator of anything."""
    return any(isinstance(node, ast.Attribute) and node.attr in ("op", "op_type", "operator") for node in nodes)


def main() -> int:
    """Print how many literals each module has, their sum, and what is not counted; return 1 if they are too many."""
    operators = {schema.name for schema in defs.get_all_schemas()} | {kind for _, kind, _ in supported()}
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    made = calls = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.startswith("rules/"):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = list(literals(nodes, operators))
        calls += written(nodes, operators)
        if name in OTHERS:
            assert not asks(nodes), f"{name} asks for operators, so that its names are some"
            others[f"{OTHERS[name]} in {name}"] = len(found)
            continue
        counts[name] = len(found)
        made += sum(is_argument for _, _, is_argument in found)
        if "-v" in sys.argv[1:]:
            print("".join(f"{name}:{line}: {kind}\n" for line, kind, _ in found), end="")
    counts += Counter()  # those without any go
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    print(f"{counts.total():5} in {len(counts)} modules, {made} of them arguments of calls")
    print(f"Not counted: {calls} nodes that a Writer writes, and {others.total()} names of something else:")
    for what, count in others.most_common():
        print(f"{count:5} {what}")
    return int(counts.total() >= TOO_MANY)


if __name__ == "__main__":
    sys.exit(main())
