"""Random graphs of operators, with operands of the conformance tables: a short run of `tools/random_graphs.py`."""

from pathlib import Path

import pytest

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


@pytest.mark.slow
def test_random_graphs_of_every_operator_grow_exactly(monkeypatch, capsys):
    monkeypatch.syspath_prepend(TOOLS)
    import random_graphs

    assert random_graphs.main(["--graphs", "200", "--jobs", "1", "--seed", "3000"]) == 0, capsys.readouterr().out


def test_the_graphs_of_a_seed_are_always_the_same(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import random_graphs

    one, other = (random_graphs.random_graph(7) for _ in range(2))
    assert one[0].SerializeToString(deterministic=True) == other[0].SerializeToString(deterministic=True)
    assert one[1] == other[1]
    assert random_graphs.check(7).status not in random_graphs.FAILURES
