"""Exploring: the same trials whatever runs them, dropped for a reason, and gone on with after a kill."""

import sqlite3
import subprocess
import sys

import pytest
from commands import MLP
from searches import SPACE, TRAIN, explore, killed, trials_table as table

from onnx_net2net import verify
from onnx_net2net.errors import BadInputError
from onnx_net2net.operations.replay import replay, steps_of
from onnx_net2net.search.explore import front
from onnx_net2net.search.promote import promote

pytest.importorskip("optuna")


def test_candidates_are_grown_trained_in_rungs_and_ranked(tmp_path):
    trials = explore(tmp_path)
    assert sorted(t.number for t in trials) == list(range(6))
    assert {t.outcomes[0].first for t in trials} == {trials[0].outcomes[0].first}  # all start at the teacher's
    assert [len(t.outcomes) for t in trials] == sorted((len(t.outcomes) for t in trials), reverse=True)
    done = [t for t in trials if t.state == "complete"]
    assert done
    assert [t.value for t in done] == sorted(t.value for t in done)
    for trial in trials:
        assert trial.curve[-1][1] == trial.value
        for before, after in zip(trial.outcomes, trial.outcomes[1:], strict=False):
            assert after.first == pytest.approx(before.last)  # each rung goes on from its own weights
            assert after.curve[0][0] == before.steps
    dropped = [t for t in trials if t.state == "pruned"]
    assert all("not among the best at step" in t.reason for t in dropped)
    best_at_first = sorted(t.outcomes[0].last for t in trials)
    assert all(t.outcomes[0].last >= best_at_first[1] for t in dropped if len(t.outcomes) == 1)


def test_a_trial_can_be_made_again_from_its_recipe(tmp_path):
    trial = next(t for t in explore(tmp_path) if t.candidate["fc1"] != "1x")
    folder = tmp_path / "work" / "trials" / f"{trial.number:04}"
    again = tmp_path / "student.onnx"
    replay(MLP, steps_of(folder / "recipe.yaml"), again)
    assert again.read_bytes() == (folder / "student.onnx").read_bytes()
    assert verify(MLP, again).equivalent


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_table_does_not_depend_on_how_many_run_at_once(tmp_path, jobs):
    first = explore(tmp_path, jobs=2, name="a")
    assert table(first) == table(explore(tmp_path, jobs=jobs, name="b"))
    assert table(first) != table(explore(tmp_path, name="c", seed=1))


@pytest.mark.slow
def test_a_search_that_is_done_is_not_done_again_and_may_go_on(tmp_path):
    first = explore(tmp_path)
    again = explore(tmp_path, train=TRAIN)
    assert table(first) == table(again)
    more = explore(tmp_path, budget=8)
    assert len(more) == 8
    assert {t.number: dict(t.candidate) for t in first}.items() <= {t.number: dict(t.candidate) for t in more}.items()
    with pytest.raises(BadInputError, match="made with another seed"):
        explore(tmp_path, seed=5)


@pytest.mark.slow
def test_what_breaks_a_constraint_is_not_trained(tmp_path):
    trials = explore(tmp_path, space=SPACE.replace("2x}", "1.3x}"))
    heavy = [t for t in trials if "parameters" in t.reason]
    assert heavy
    assert all(t.cost and not t.outcomes for t in heavy)
    assert not any(t.cost.parameters > 1.3 * 17226 for t in trials if t.outcomes)


def test_a_candidate_that_cannot_be_exact_is_dropped_with_its_reason(tmp_path):
    train = TRAIN.replace("{rate}", "0.2")
    trials = explore(tmp_path, space="widen: {fc1: [64, 128, 160]}", train=train, budget=3, rungs=(2,))
    refused = [t for t in trials if t.candidate["fc1"] == 64]
    assert [(t.state, t.outcomes) for t in refused] == [("pruned", [])]
    assert "64 would be narrower" in refused[0].reason
    assert all(t.state == "complete" for t in trials if t not in refused)
    assert trials[-1] in refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"), [("crash", "out of memory"), ("nan", "val_loss is nan"), ("empty", "left no")]
)
def test_trainings_that_fail_are_trials_that_failed(tmp_path, how, words):
    space = f"widen: {{fc1: [1x, 1.5x]}}\ntrain: {{how: [well, {how}]}}"
    train = TRAIN.replace("--rate {rate}", "--how {how}")
    trials = explore(tmp_path, space=space, train=train, rungs=(3,), budget=4, batch=4)
    failed = [t for t in trials if t.candidate["how"] == how]
    assert len(failed) == 2
    assert all(t.state == "fail" and words in t.reason for t in failed)
    assert all(t.state == "complete" for t in trials if t not in failed)
    assert trials[-2:] == failed or trials[-2:] == failed[::-1]
    assert table(trials) == table(explore(tmp_path, space=space, train=train, rungs=(3,), budget=4, batch=4))


def test_a_space_that_is_exhausted_ends_the_search(tmp_path):
    trials = explore(tmp_path, space="widen: {fc1: [1x, 1.25x]}", train=TRAIN.replace(" --rate {rate}", ""), budget=9)
    assert len(trials) == 2


@pytest.mark.slow
def test_several_objectives_keep_what_is_on_the_front(tmp_path):
    trials = explore(tmp_path, train=TRAIN + " --grows 0.01", objectives=("parameters",), budget=8, batch=4)
    done = {t.number: (t.value, float(t.cost.parameters)) for t in trials if t.state == "complete"}
    assert front(done)
    smallest = min((t for t in trials), key=lambda t: (t.cost.parameters, t.outcomes[0].last))
    assert smallest.state == "complete"


def test_the_front_is_what_nothing_else_beats():
    points = {1: (1.0, 5.0), 2: (2.0, 2.0), 3: (3.0, 3.0), 4: (2.0, 2.0), 5: (5.0, 1.0)}
    assert front(points) == {1, 2, 4, 5}


@pytest.mark.slow
def test_the_study_is_kept_where_optuna_reads_it(tmp_path):
    import optuna

    trials = explore(tmp_path)
    study = optuna.load_study(study_name="explore", storage=f"sqlite:///{tmp_path / 'work' / 'study.db'}")
    assert len(study.trials) == 6
    assert study.best_value == min(t.value for t in trials if t.state == "complete")
    pruned = next(t for t in study.trials if t.state.name == "PRUNED")
    assert "not among the best" in pruned.user_attrs["reason"]
    assert pruned.intermediate_values
    assert pruned.user_attrs["parameters"] > 0


def test_the_winner_becomes_a_teacher(tmp_path):
    trials = explore(tmp_path)
    promote(trials[0].network, tmp_path / "best")
    assert verify(trials[0].network.model, tmp_path / "best" / "teacher.onnx").equivalent
    assert (tmp_path / "best" / "teacher.safetensors").exists()


HOLD = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_two_runners_do_not_share_a_search(tmp_path):
    (tmp_path / "work" / ".runner").mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "work" / ".runner"], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(BadInputError, match="another runner works in"):
            explore(tmp_path)
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_a_study_of_another_folder_is_not_taken(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    explore(tmp_path, storage=storage, budget=2, batch=2)
    with pytest.raises(BadInputError, match="made with another work"):
        explore(tmp_path, storage=storage, budget=2, batch=2, name="elsewhere")


def test_a_storage_that_is_none_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(BadInputError, match="cannot use the study"):
        explore(tmp_path, storage=f"sqlite:///{tmp_path / 'notes.txt'}")


@pytest.mark.slow
def test_a_search_that_is_killed_ten_times_comes_to_the_same_table(tmp_path):
    train = TRAIN + " --wait 0.2"
    calm = explore(tmp_path / "calm", train=train)
    killed("explore(folder, train=train, jobs=2)", tmp_path / "rough", train)
    assert table(explore(tmp_path / "rough", train=train)) == table(calm)
    with sqlite3.connect(tmp_path / "rough" / "work" / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (6,)
