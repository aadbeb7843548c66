"""The study of transfer: weights go to ONNX and back, rates are chosen for each arm, gains are counted right."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("sklearn")

TOOLS = str(Path(__file__).resolve().parent.parent / "tools")
sys.path.insert(0, TOOLS)
try:
    from experiments import transfer as study
finally:
    sys.path.remove(TOOLS)


def run(arm, rate, *accuracies, seed=0):
    return study.Run("a", "b", arm, rate, seed, accuracies)


def test_rates_are_chosen_for_each_arm_by_what_comes_after_training():
    slow, quick, _ = study.RATES
    runs = [
        run("random", slow, 0.9, 0.1, 0.2, 0.3), run("random", quick, 0.1, 0.3, 0.4, 0.5),
        run("transfer", slow, 0.8, 0.8, 0.8, 0.8), run("transfer", slow, 0.8, 0.9, 0.9, 0.9, seed=1),
        run("transfer", quick, 0.8, 0.2, 0.9, 0.9), run("transfer", quick, 0.8, 0.2, 0.9, 0.9, seed=1),
    ]  # fmt: skip
    (row,) = study.summary([*runs, run("random", study.RATES[2], 0, 0, 0, 0)], {("a", "b"): {"filled": 0.5}})
    assert (row["random rate"], row["transfer rate"]) == (quick, slow)
    assert (row["random 5"], row["transfer 1"]) == (0.5, pytest.approx(0.85))
    assert "dpiat 0" not in row


def test_correlations_with_the_gain():
    rows = [
        {measure: x if measure == "filled" else -x for measure in study.MEASURES}
        | {f"{arm} {epoch}": 0.1 + (x**3 if arm == "transfer" else -x if arm == "dpiat" else 0)
           for arm in study.ARMS for epoch in study.EPOCHS}
        for x in (0.1, 0.2, 0.5, 0.9)
    ]  # fmt: skip
    lines = {tuple(line.split()[:2]): line.split()[2:] for line in study.correlations(rows).splitlines()}
    assert lines["filled", "dpiat"] == ["-1.00,", "-1.00"] * 4
    assert lines["filled", "transfer"][1] == "1.00"
    assert lines["dpiat", "dpiat"] == ["1.00,", "1.00"] * 4


@pytest.mark.slow
def test_weights_go_to_a_file_and_back_and_a_same_network_stays_what_it_was():
    import torch

    torch.manual_seed(0)
    module = study.NETWORKS["vgg"]()
    (accuracy,) = study.train(module, 3e-3, [1], 0)
    teacher = study.to_onnx("vgg", module)
    old, new = module.state_dict(), study.from_onnx("vgg", teacher).state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.endswith("num_batches_tracked"))
    student = study.transfer(teacher, study.to_onnx("vgg wide", study.NETWORKS["vgg wide"]())).student
    assert study.train(study.from_onnx("vgg wide", student), 1e-3, [0], 0) == (pytest.approx(accuracy, abs=0.004),)
