"""The experiments of the paper: the chain is exact, and the summary counts what it says."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
    from experiments import definitions, results
    from experiments.training import Curve, Point
finally:
    sys.path.remove(TOOLS)


@pytest.fixture
def short(monkeypatch):
    """All schedules a few steps long."""
    small = definitions.SETTINGS["small"]
    brief = {name: dataclasses.replace(getattr(small, name), steps=4, batch=8) for name in ("images", "digits", "text")}
    tiny = dataclasses.replace(small, train_images=600, **brief)
    monkeypatch.setattr(definitions, "SETTINGS", {"small": tiny})


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["figure4", "figures5and6", "transformer", "symmetry"])
def test_students_start_where_their_teacher_ended(short, experiment, tmp_path):
    bench = definitions.run(experiment, "small", seed=1)
    teacher = next(curve for curve in bench.curves if curve.arm == definitions.TEACHER).points[-1]
    exact = [curve for curve in bench.curves if curve.arm.startswith((definitions.NET2NET, "random split"))]
    assert exact
    for curve in exact:
        assert curve.points[0].loss == pytest.approx(teacher.loss, rel=1e-5)
        assert curve.points[0].accuracy == pytest.approx(teacher.accuracy, abs=2e-3)
        assert curve.points[-1].loss != curve.points[0].loss
    others = [curve for curve in bench.curves if curve.arm in (definitions.RANDOM_INIT, definitions.RANDOM_PAD)]
    assert all(curve.points[0].loss != pytest.approx(teacher.loss, rel=1e-5) for curve in others)
    results.write_curves(tmp_path / f"{experiment}.csv", bench.curves)
    table = results.summarize_folder(tmp_path)
    assert all(curve.arm in table for curve in bench.curves)
    assert (tmp_path / "summary.csv").stat().st_size
    assert list(tmp_path.glob("*.png"))


def curve(arm, *accuracies, flops=1, shape="", seed=0):
    points = [Point(10 * number, 0.5, 1.0, accuracy, 1 - accuracy) for number, accuracy in enumerate(accuracies)]
    return Curve("figure4", shape, arm, seed, 7, flops, -1, points)


def test_the_summary_compares_with_the_baselines_of_the_same_seed():
    curves = [
        curve("teacher", 0.1, 0.3, 0.4, flops=2),
        curve("random initialization", 0.1, 0.3, 0.5, 0.6, 0.6, flops=5),
        curve("random pad", 0.0, 0.1, 0.4, 0.5, 0.7, flops=5),
        curve("Net2Net", 0.4, 0.6, 0.7, 0.7, 0.7, flops=5),
        curve("never there", 0.4, 0.4, 0.4, 0.4, 0.4, flops=5),
    ]
    rows = {row.arm: row for row in results.summarize(curves)}
    net2net, never = rows["Net2Net"], rows["never there"]
    assert (net2net.to_teacher, net2net.to_random, net2net.accuracy) == (0, 10, 0.7)
    assert (rows["random initialization"].to_teacher, rows["random initialization"].to_random) == (20, 30)
    assert (net2net.random_by_this_to_random, net2net.pad_by_this_to_pad) == (3, 2)
    assert net2net.compute_to_random == (2 * 20 + 5 * 10) / (5 * 30)
    assert (never.to_random, never.random_to_this) == (float("inf"), 20)
    assert math.isnan(never.random_by_this_to_random)
    assert (net2net.random_by_this_to_teacher, net2net.pad_by_this_to_teacher) == (float("inf"), float("inf"))
    assert "never" in results.markdown([never])


def test_curves_are_read_as_they_were_written(tmp_path):
    curves = [curve("a", 0.25, 0.5, seed=seed, shape=shape) for seed in (0, 1) for shape in ("", "wider")]
    results.write_curves(tmp_path / "curves.csv", curves)
    assert results.read_curves(tmp_path / "curves.csv") == curves
