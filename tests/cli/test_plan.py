"""`plan`: what it says of two logs, of one, and of what is none."""

import json

import numpy as np
import pytest

from onnx_net2net.cli.main import main


@pytest.fixture
def logs(tmp_path):
    def write(name, floor, scale, power, last, cost):
        steps = np.arange(10, last + 1, 10)
        lines = [{"step": int(t), "loss": floor + scale * t**-power, "cost": cost * float(t)} for t in steps]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return str(tmp_path / name)

    return write("small.jsonl", 1.6, 6.0, 0.35, 2000, 3.0), write("large.jsonl", 1.2, 7.0, 0.32, 600, 10.0)


def test_a_plan_says_when_to_grow_and_what_that_saves(logs, capsys):
    small, large = logs
    assert main(["plan", small, "--probe", large, "--budget", "1200"]) == 0
    text = capsys.readouterr().out
    assert "grow at step" in text
    assert "32% of the compute" in text
    assert "at most 1.21 x" in text


def test_a_budget_may_be_a_cost(logs, capsys):
    small, large = logs
    found = []
    for budget in ("1200", "12000flops"):
        assert main(["plan", small, "--probe", large, "--budget", budget, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["ratio"] == pytest.approx(0.3)
    assert found[0]["pays"]


def test_without_a_probe_it_says_what_is_known(logs, capsys):
    assert main(["plan", logs[0], "--budget", "1000", "--factor", "2"]) == 0
    text = capsys.readouterr().out
    assert "between step 800 and step 1,400" in text
    assert "--probe" in text


def test_a_picture_is_drawn(logs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    small, large = logs
    picture = tmp_path / "plan.svg"
    assert main(["plan", small, "--probe", large, "--budget", "1200", "--picture", str(picture)]) == 0
    assert picture.read_text().startswith("<?xml")
    assert main(["plan", small, "--probe", large, "--budget", "1200", "--picture", str(tmp_path / "plan.xyz")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.jsonl", "plan.svg", "small.jsonl"]


@pytest.mark.parametrize("budget", ["x", "0", "-5", "1e999", "5parsecs"])
def test_a_budget_that_is_none_is_refused(logs, capsys, budget):
    assert main(["plan", logs[0], f"--budget={budget}"]) == 2
    assert "--budget" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("factor", "0"), ("factor", "-2"), ("factor", "nan"), ("ratio", "0")])
def test_a_cost_that_is_none_is_refused(logs, capsys, option, value):
    assert main(["plan", logs[0], "--budget", "1000", f"--{option}={value}"]) == 2
    assert "must be above 0" in capsys.readouterr().err
