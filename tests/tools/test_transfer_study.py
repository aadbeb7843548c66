"""The study of transfer: rates come from validation images, gains are counted right, weights go to ONNX and back."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")  # comes with scikit-learn

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
    from experiments import transfer_results as results
    from experiments.transfer_results import ARMS, EPOCHS, MEASURES, TEST, VALIDATION, Pair, Run
finally:
    sys.path.remove(TOOLS)

ONE, OTHER = Pair("digits", "wider", "a", "b"), Pair("digits", "deeper", "a", "c")


@pytest.fixture
def study(monkeypatch):
    """The script itself, which needs what trains and exports."""
    for package in ("torch", "onnxscript", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(TOOLS)
    from experiments import transfer

    return transfer


def run(pair=ONE, arm="transfer", *accuracies, rate=0.1, images=TEST, seed=0):
    return Run(pair, arm, rate, images, seed, accuracies)


def every_arm(pair, base, seed=0):
    """Runs of all arms, those later in `ARMS` better."""
    return [run(pair, arm, *(base + number / 10 for _ in EPOCHS), seed=seed) for number, arm in enumerate(ARMS)]


def similarity(**values):
    return dict.fromkeys(MEASURES, 0.0) | values


def test_the_rate_is_the_best_after_training_on_average_over_seeds():
    runs = [
        run(ONE, "transfer", 0.9, 0.6, 0.6, 0.6, rate=0.1), run(ONE, "transfer", 0.9, 0.6, 0.6, 0.6, rate=0.1, seed=1),
        run(ONE, "transfer", 0.1, 0.5, 0.7, 0.7, rate=0.3), run(ONE, "transfer", 0.1, 0.5, 0.7, 0.7, rate=0.3, seed=1),
        run(ONE, "transfer", 0.9, 0.9, 0.9, 0.9, rate=1.0), run(ONE, "transfer", 0.9, 0.1, 0.1, 0.1, rate=1.0, seed=1),
    ]  # fmt: skip
    assert results.best_rate(runs) == 0.3


def test_only_test_images_are_reported_with_the_spread_over_seeds():
    runs = [*every_arm(ONE, 0.2), *every_arm(ONE, 0.4, seed=1), run(ONE, "random", 1, 1, 1, 1, images=VALIDATION)]
    (row,) = results.by_pair(runs, {ONE: [similarity(filled=0.2), similarity(filled=0.4)]})
    assert (row["data"], row["kind"], row["filled"]) == ("digits", "wider", pytest.approx(0.3))
    assert (row["random 5"], row["transfer 0"]) == (pytest.approx(0.3), pytest.approx(0.5))
    assert row["dpiat 1 sd"] == pytest.approx(np.std([0.3, 0.5], ddof=1))
    assert results.gain(row, "transfer", 2) == pytest.approx(0.2)


def test_the_spread_of_a_kind_is_that_of_its_means():
    runs = [run for seed in (0, 1) for pair, base in ((ONE, 0.1 + 0.2 * seed), (OTHER, 0.5 - 0.2 * seed))
            for run in every_arm(pair, base, seed)]  # fmt: skip
    runs += [run for seed in (0, 1) for run in every_arm(Pair("glyphs", "wider", "a", "b"), 0.0, seed)]
    rows = {(row["data"], row["kind"], row["arm"]): row for row in results.by_kind(runs)}
    assert set(rows) == {
        (data, kind, arm)
        for data, kinds in (("digits", ("all", "wider", "deeper")), ("glyphs", ("all", "wider")))
        for kind in kinds
        for arm in ARMS
    }
    both = rows["digits", "all", "transfer"]
    assert (both["pairs"], both["5"], both["5 sd"]) == (2, pytest.approx(0.5), pytest.approx(0))
    assert rows["digits", "deeper", "random"]["0"] == pytest.approx(0.4)
    assert rows["digits", "deeper", "random"]["0 sd"] == pytest.approx(np.std([0.5, 0.3], ddof=1))


def test_correlations_are_those_with_the_gain_of_each_data_set():
    rows = [
        {"data": data} | {measure: x if measure == "filled" else -x for measure in MEASURES}
        | {f"{arm} {epoch}": 0.1 + sign * (x**3 if arm == "transfer" else -x if arm == "dpiat" else 0)
           for arm in ARMS for epoch in EPOCHS}
        for data, sign in (("digits", 1), ("glyphs", -1)) for x in (0.1, 0.2, 0.5, 0.9)
    ]  # fmt: skip
    found = {(row["data"], row["arm"], row["measure"], row["epoch"]): row for row in results.correlations(rows)}
    assert len(found) == 2 * 2 * len(MEASURES) * len(EPOCHS)
    assert found["digits", "dpiat", "filled", 0]["pearson"] == pytest.approx(-1)
    assert 0.8 < found["digits", "transfer", "filled", 5]["pearson"] < 0.99
    assert found["digits", "transfer", "filled", 5]["spearman"] == pytest.approx(1)
    assert found["glyphs", "transfer", "kept", 1]["spearman"] == pytest.approx(1)


def test_tables_and_figures_are_made_of_the_files(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [run for seed in (0, 1) for pair in (ONE, OTHER) for run in every_arm(pair, 0.25 * (pair == OTHER), seed)]
    alike = {ONE: [similarity(kept=0.5)] * 2, OTHER: [similarity(kept=0.25)] * 2}
    results.write_runs(tmp_path, runs, alike)
    read, measured = results.read_runs(tmp_path)
    assert measured == alike
    assert [(one.pair, one.arm, one.rate, one.images, one.seed) for one in read] == [
        (one.pair, one.arm, one.rate, one.images, one.seed) for one in runs
    ]
    assert np.allclose([one.accuracies for one in read], [one.accuracies for one in runs], atol=1e-4)
    table = results.summarize_folder(tmp_path)
    assert "| digits | all (2) | transfer | 32.5% ± 0.0 |" in table
    made = {path.name for path in tmp_path.iterdir() if path.stat().st_size}
    names = ("transfer.csv", "transfer_kinds.csv", "transfer_correlations.csv", "transfer.png", "transfer_curves.png")
    assert made == {*names, "transfer_runs.csv", "transfer_similarities.csv"}


def test_a_pass_takes_every_image_once(study):
    import torch
    from experiments.data import Images, in_passes

    count, batch = 22, 4
    batches = in_passes(Images(torch.arange(count), torch.arange(count)))(batch, torch.Generator().manual_seed(0))
    passes = [torch.cat([next(batches)[0] for _ in range(count // batch)]).tolist() for _ in range(2)]
    assert all(len(set(some)) == len(some) == 20 for some in passes)
    assert passes[0] != passes[1]


def test_nothing_is_trained_on_validation_or_test_images(study):
    import torch
    from train_models import load_split

    training, validation, test = study.SETS["digits"].parts()
    split = load_split()
    assert torch.equal(torch.cat([training.inputs, validation.inputs]), torch.from_numpy(split.train_images))
    assert torch.equal(test.classes, torch.from_numpy(split.test_labels))
    for held_out, images in ((VALIDATION, validation), (TEST, test)):
        task = study.tasks("digits")[held_out]
        assert torch.equal(torch.cat([classes for _, classes in task.valid]), images.classes)
        batches = task.batches(len(training.classes), torch.Generator())
        assert torch.equal(next(batches)[0].sum(0).round(), training.inputs.sum(0).round())


def test_kinds_of_pairs_are_what_they_say(study):
    def kind_of(teacher, target):
        family, widths, depth = study.NETWORKS[teacher]
        other, other_widths, other_depth = study.NETWORKS[target]
        if family != other:
            return "other family"
        if other_widths[0] < widths[0]:
            return "narrower"
        wider = ["wider"] if other_widths[0] > widths[0] else []
        deeper = ["deeper"] if len(other_widths) + other_depth > len(widths) + depth else []
        return " and ".join(wider + deeper) or "same"

    assert all(kind == kind_of(*pair) for kind, pairs in study.PAIRS.items() for pair in pairs)
    assert sum(map(len, study.PAIRS.values())) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "glyphs"])
def test_weights_go_to_a_file_and_back_and_a_wider_network_starts_where_its_teacher_ended(study, data):
    import torch

    if data == "glyphs":
        pytest.importorskip("matplotlib")
    teacher = study.trained(data, "vgg", 0)
    module = study.from_onnx(data, "vgg", teacher)
    back = study.from_onnx(data, "vgg", study.to_onnx(data, "vgg", module))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in module.state_dict().items())
    student = study.begun(data, "vgg", "vgg wide", "transfer", 0)
    ended, started = (study.accuracies(net, data, TEST, 1e-3, 0, [0, 1])[0] for net in (module, student))
    assert started == pytest.approx(ended, abs=0.004)
    assert ended > 0.3


@pytest.mark.slow
def test_the_study_runs(study, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(study, "SETS", {"digits": study.SETS["digits"]})
    monkeypatch.setattr(study, "PAIRS", {"wider": [("mlp", "mlp wide")], "narrower": [("mlp wide", "mlp")]})
    monkeypatch.setattr(study, "RATES", (1e-3, 1e-2))
    study.main(["--seeds", "1", "--out", str(tmp_path)])
    runs, alike = results.read_runs(tmp_path)
    trials = [one for one in runs if one.images == VALIDATION]
    assert len(trials) == 2 * len(ARMS) * len(study.RATES) * len(study.TRIAL_SEEDS)
    assert {one.seed for one in trials} == set(study.TRIAL_SEEDS)
    assert {one.seed for one in runs if one.images == TEST} == {0}
    wider, narrower = results.by_pair(runs, alike)
    for row in (wider, narrower):
        for arm in ARMS:
            of_arm = [one for one in trials if (one.pair.kind, one.arm) == (row["kind"], arm)]
            assert row[f"{arm} rate"] == results.best_rate(of_arm)
    assert wider["transfer 0"] > 0.9 > 0.3 > wider["random 0"]
    assert (wider["agreement"], wider["kept"]) == (pytest.approx(1, abs=1e-3), 1)
    assert narrower["kept"] < 1
    assert (tmp_path / "transfer_curves.png").stat().st_size
