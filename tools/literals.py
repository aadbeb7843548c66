"""Count operator names that stand as string literals outside of `onnx_net2net.rules`.

Facts about operators live in the rules and in `onnx_net2net.rules.traits`. A name that is an argument of a call is told
apart: it says which node is made or handled, and asks nothing of a node that is there.

    python tools/literals.py [-v]        # -v also names each literal and its line
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from onnx import defs

from onnx_net2net.rules import supported

PACKAGE = Path(__file__).resolve().parent.parent / "onnx_net2net"


def literals(path: Path, operators: set[str]) -> Iterator[tuple[int, str, bool]]:
    """Yield each literal of a file that is an operator's name: its line, its text, whether it is an argument."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    arguments = {id(argument) for node in nodes if isinstance(node, ast.Call) for argument in node.args}
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in operators:
            yield node.lineno, str(node.value), id(node) in arguments


def main() -> None:
    """Print how many literals each module has, and their sum."""
    operators = {schema.name for schema in defs.get_all_schemas()} | {kind for _, kind, _ in supported()}
    counts: Counter[str] = Counter()
    made = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.startswith("rules/"):
            continue
        for line, kind, is_argument in literals(path, operators):
            counts[name] += 1
            made += is_argument
            if "-v" in sys.argv[1:]:
                print(f"{name}:{line}: {kind}")
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    print(f"{counts.total():5} in {len(counts)} modules, {made} of them arguments of calls")


if __name__ == "__main__":
    main()
