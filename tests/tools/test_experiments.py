"""The experiments: a student starts where its teacher ended, and the tables count what they say."""

import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
    import run_experiments
    from experiments import data, results, studies
    from experiments.lab import SCRATCH, Lab, Run, read_runs, tuned
    from experiments.networks import transformer
    from experiments.training import LAST, Training, rates, undecayed
finally:
    sys.path.remove(TOOLS)

SMALL = studies.SETTINGS["small"]()
STUDIES = {study.name: study for study in SMALL.studies}


def test_rates_rise_stay_and_fall():
    rate = rates(1.0, 4, 100)
    assert [rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate(undecayed(100) - 1) == 1.0 == rates(1.0, 4)(10_000)
    falling = [rate(step) for step in range(undecayed(100), 101)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(LAST)


def test_a_training_goes_on_where_it_was_saved(tmp_path):
    def begin():
        torch.manual_seed(0)
        return Training(transformer(16, 1, 16, 8), data.python_source(16), 4, seed=1)

    whole, parted, resumed = begin(), begin(), begin()
    whole.advance(6, rates(1e-2, 2))
    parted.advance(3, rates(1e-2, 2))
    parted.save(tmp_path / "run" / "3.pt")
    resumed.resume(tmp_path / "run" / "3.pt")
    resumed.advance(6, rates(1e-2, 2))
    assert resumed.step == 6
    assert resumed.score() == whole.score() != parted.score()


@pytest.mark.parametrize(("best", "start"), [(0.25, 1.0), (1.0, 1.0), (8.0, 1.0)])
def test_the_best_rate_has_worse_ones_on_either_side(best, start):
    tried = []

    def loss(rate):
        tried.append(rate)
        return math.nan if rate > 10 else abs(math.log(rate / best))

    assert tuned(loss, start) == best
    assert {best / 2, best * 2} <= set(tried)
    assert len(tried) == len(set(tried))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["width 4x", "figure 5", "MLP"])
def test_students_start_where_their_teacher_ended(name, tmp_path):
    study = STUDIES[name].scaled(0.0)
    lab = Lab(tmp_path, tmp_path / "work")
    lab.study(study, range(1), (100,))
    lab.variants(study, range(1), (100,))
    known = {run.key for run in read_runs(tmp_path / "runs.csv")}
    assert known == set(lab.runs)
    teachers = {run.steps: run.loss for run in lab.runs.values() if run.network == study.small.name and run.seed == 0}
    assert set(teachers) == set(study.budgets)
    arms = {run.arm: run for run in lab.runs.values() if run.teacher and run.seed == 0}
    assert {"grown", *(variant.name for variant in study.variants)} == set(arms)
    # What is exact starts alike, at the loss of the same teacher; what is not does not.
    same = {arm: run.start_loss for arm, run in arms.items() if arm in ("grown", "spread 1", "even split", "zero_out")}
    low, _, rate = lab._rates(study, (100,))
    teacher = lab._trunk(study.small, 0, low, arms["grown"].teacher_steps)
    for arm, loss in same.items():
        assert loss == pytest.approx(teacher.score().loss, rel=1e-4), arm
    if "random pad" in arms:
        assert arms["random pad"].start_loss != pytest.approx(arms["grown"].start_loss, rel=1e-4)
    before = len(lab.runs)
    Lab(tmp_path, tmp_path / "elsewhere").grown(study, studies.GROWN, 0, study.budgets[0], low, rate)
    assert len(lab.runs) == before
    assert not (tmp_path / "elsewhere").exists()


def run_of(study, arm, budget, seed, loss):
    """Return a run of some budget, in steps of the small network."""
    small, large = study.small, study.large
    if arm == "small":
        return Run(small.name, SCRATCH, "", 0, budget, seed, 1.0, 1, budget * small.step_flops, math.nan, 0.5, loss)
    before = 0 if arm == "large" else round(budget / 3)
    steps = round((budget - before) * study.ratio)
    flops = before * small.step_flops + steps * large.step_flops
    names = (large.name, SCRATCH, "") if arm == "large" else (large.name, arm, small.name)
    return Run(*names, before, steps, seed, 1.0, 1, flops, math.nan, 0.5, loss)


def test_the_table_compares_at_equal_compute_and_by_seed():
    study = STUDIES["width 4x"]
    one, two, _, four = study.budgets
    runs = [
        *(run_of(study, "small", one, seed, 2.5) for seed in (0, 1)),
        run_of(study, "large", one, 0, 3.0), run_of(study, "large", one, 1, 2.3),
        run_of(study, "large", two, 0, 2.4), run_of(study, "large", two, 1, 2.2),
        run_of(study, "grown", one, 0, 2.4), run_of(study, "grown", one, 1, 2.4),
        run_of(study, "noise", one, 0, 2.5), run_of(study, "noise", one, 100, 9.0),
        run_of(study, "large", 777, 0, 0.1), run_of(study, "grown", four, 0, 0.1),
    ]  # fmt: skip
    curves = results.Curves(study, runs, seeds=100)
    rows = {(row.arm, round(row.compute)): row for row in curves.rows()}
    first = round(one * study.ratio)
    grown = rows["grown", first]
    assert (grown.seeds, grown.loss, grown.share) == (2, 2.4, pytest.approx(1 / 3, abs=0.01))
    assert (grown.best, grown.gap) == (1, pytest.approx(0.0))  # 2.4 - 2.5 and 2.4 - 2.3
    assert curves.needed(0, 2.4) == pytest.approx(two * study.ratio, abs=1)
    assert math.isnan(curves.needed(1, 2.4))  # the first budget is enough
    assert curves.needed(0, 2.7) == pytest.approx(math.sqrt(one * two) * study.ratio, rel=0.01)
    assert math.isnan(grown.compute_ratio)
    assert rows["noise", first].against_grown == pytest.approx(0.1)
    farthest = next(row for row in curves.rows() if row.arm == "grown" and row.compute > 2 * first)
    assert (farthest.beyond, farthest.compute_ratio) == (1, pytest.approx(two / four, rel=0.02))
    table = results.curves_table(rows.values())
    assert f"| width 4x | {first} | 2 | 2.500" in table
    assert "+0.000, below on 1 of 2" in table
    assert "> " in results.curves_table([farthest])
    assert "noise" in results.variants_table(list(rows.values()))


def test_the_large_setting_has_larger_networks():
    for study in studies.SETTINGS["large"]().studies:
        assert study.small.step_flops < study.large.step_flops
        assert study.small.step_flops > STUDIES[study.name].small.step_flops


@pytest.mark.slow
def test_the_command_writes_tables_and_pictures(tmp_path, capsys):
    run_experiments.main(["--study", "MLP", "--scale", "0", "--seeds", "1", "--out", str(tmp_path)])
    assert "MLP" in capsys.readouterr().out
    assert list(tmp_path.glob("*.svg"))
    assert (tmp_path / "summary.csv").stat().st_size
