"""Plans for growth: curves are found again, the best moment is the best one, and what cannot pay is said."""

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnx_net2net import BadInputError
from onnx_net2net.framework.planning import Log, fit_curve, plan, read_log, sentences


def log(floor, scale, power, last, cost=1.0, noise=0.0):
    steps = np.arange(1, last + 1, dtype=float)
    return Log(steps, floor + scale * steps**-power + noise * np.random.default_rng(0).standard_normal(last), cost)


@given(st.floats(0, 3), st.floats(0.5, 10), st.floats(0.15, 1.0))
def test_a_curve_is_found_again_by_its_points(floor, scale, power):
    curve = fit_curve(log(floor, scale, power, 3000))
    steps = np.array([200.0, 1000.0, 6000.0])
    np.testing.assert_allclose(curve.loss(steps), floor + scale * steps**-power, rtol=0.01, atol=1e-3 * scale)
    np.testing.assert_allclose(curve.steps(curve.loss(steps)), steps, rtol=1e-6)


def test_noise_does_not_move_a_curve_much():
    curve = fit_curve(log(1.5, 6.0, 0.4, 4000, noise=0.1))
    assert curve.loss(np.array(2000.0)) == pytest.approx(1.5 + 6.0 * 2000**-0.4, abs=0.02)


def test_no_other_moment_is_better():
    small, large = log(1.6, 6.0, 0.35, 2000, cost=3.0), log(1.2, 7.0, 0.32, 800, cost=10.0)
    best = plan(small, large, 1200)
    assert best.ratio == pytest.approx(0.3)
    assert best.pays
    for moment in (0.3, 0.7, 1.5):
        steps = best.grow_at * moment
        reached = 1.6 + 6.0 * steps**-0.35
        stands_for = ((reached - 1.2) / 7.0) ** (-1 / 0.32)
        assert stands_for - 0.3 * steps < best.stands_for - 0.3 * best.grow_at
    assert best.after == pytest.approx(1200 - 0.3 * best.grow_at)
    assert best.saves == pytest.approx((best.stands_for + best.after) / 1200, rel=1e-6)
    assert best.grown < min(best.scratch, best.small)


def test_a_small_network_that_costs_as_much_cannot_pay():
    assert not plan(log(1.6, 6.0, 0.35, 2000), log(1.2, 5.0, 0.35, 800), 1000, ratio=1.0).pays


def test_a_small_network_that_would_be_better_trained_on_is_not_grown():
    found = plan(log(1.2, 6.0, 0.35, 2000), log(1.15, 6.6, 0.3, 2000), 300, ratio=0.05)
    assert found.saves > 1
    assert not found.pays
    assert any("small network, trained on" in sentence for sentence in sentences(found))


def test_what_rests_on_more_than_the_logs_is_said():
    found = plan(log(1.6, 6.0, 0.35, 300), log(1.2, 7.0, 0.32, 100), 3000, ratio=0.3)
    assert set(found.beyond) == {"small", "large"}


def write(path, entries):
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    return path


def test_logs_are_read_with_their_cost(tmp_path):
    entries = [{"step": step, "loss": 3 - step / 100, "cost": 7.0 * step, "note": "x"} for step in range(0, 100, 10)]
    found = read_log(write(tmp_path / "small.jsonl", entries))
    assert found.cost == pytest.approx(7.0)
    assert found.steps[0] == 10
    assert len(found.losses) == 9


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"step": 1, "loss": 2.0}], "needs 8"),
        ([{"step": n, "loss": None} for n in range(1, 20)], "line 1 is no"),
        ([{"step": n, "loss": float("nan")} for n in range(1, 20)], "finite"),
        ([{"step": 5 - n, "loss": 1.0} for n in range(4)], "step 4 comes after step 5"),
        ([[1, 2.0]], "line 1 is no"),
        ([{"step": n, "loss": 1.0 + n} for n in range(1, 20)], "does not fall"),
    ],
)
def test_a_log_that_says_nothing_is_refused(tmp_path, entries, words):
    with pytest.raises(BadInputError, match=words):
        fit_curve(read_log(write(tmp_path / "log.jsonl", entries)))


def test_without_costs_the_ratio_is_asked_for():
    with pytest.raises(BadInputError, match="--ratio"):
        plan(log(1, 5, 0.4, 100, cost=None), log(1, 5, 0.4, 100), 100)
