"""A chain of networks: made, trained, resumed, and done again where something changed."""

import itertools
import random
import signal
import subprocess
import sys
import time

import pytest
from chains import TRAIN, write
from commands import MLP
from searches import stages_table as table

from onnx_net2net import load, verify
from onnx_net2net.errors import BadInputError, NotEquivalentError, RefusedError
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.search.chain import compute_saved, plan_chain, run_chain
from onnx_net2net.search.stages import read_chain
from onnx_net2net.search.training import TrainingError


def reasons(chain, since=None):
    return {planned.stage.name: planned.reason for planned in plan_chain(chain, since)}


def test_a_chain_grows_trains_and_stays_done(tmp_path):
    chain = read_chain(write(tmp_path))
    assert reasons(chain) == {"start": "it is new", "m": "start is done before", "l": "start is done before"}
    heard = []
    rows = run_chain(chain, report=lambda *line: heard.append(line))
    assert [row.name for row in rows] == ["start", "m", "l"]
    assert all(row.exact for row in rows)
    assert rows[0].cost.parameters < rows[1].cost.parameters < rows[2].cost.parameters
    for before, row in itertools.pairwise(rows):
        assert row.expected == before.outcome.last == pytest.approx(row.outcome.first)
        assert row.outcome.last < row.outcome.first
        assert verify(before.network.model, row.network.model.parent / "student.onnx").equivalent
    assert heard[0] == ("start", 0, rows[0].outcome.first)
    assert reasons(chain) == {"start": "", "m": "", "l": ""}
    heard.clear()
    assert table(run_chain(chain, report=lambda *line: heard.append(line))) == table(rows)
    assert not heard


def test_trained_weights_are_in_the_file_and_in_the_next_stage(tmp_path):
    rows = run_chain(read_chain(write(tmp_path)))
    for row in rows:
        state, tensors = (
            state_dicts.read(row.network.state),
            {t.name: t for t in load(row.network.model).proto.graph.initializer},
        )
        assert state.keys() <= tensors.keys()
    weight = state_dicts.read(rows[0].network.state)["fc3.bias"].read()
    later = state_dicts.read(rows[1].network.state.parent.parent / "init.safetensors")["fc3.bias"].read()
    assert weight.tolist() == later.tolist()
    assert weight.tolist() != state_dicts.read(rows[1].network.state)["fc3.bias"].read().tolist()


def test_what_changed_makes_a_stage_stale_and_all_behind_it(tmp_path):
    run_chain(read_chain(write(tmp_path)))
    stages = [{"name": "m", "widen": {"factor": 1.25}}, {"name": "l", "widen": {"factor": 1.5}}]
    chain = read_chain(write(tmp_path, stages=stages))
    assert reasons(chain) == {"start": "", "m": "", "l": "it is stale: its description changed"}
    assert reasons(chain, "m") == {"start": "", "m": "as asked", "l": "m is done before"}
    run_chain(chain)
    assert (tmp_path / "runs" / "02-l.old" / "student.onnx").exists()
    chain = read_chain(write(tmp_path, stages=stages, stop={"metric": "val_loss", "steps": 4}))
    assert reasons(chain)["start"] == "it is stale: its training changed"


def test_another_teacher_makes_everything_stale(tmp_path):
    run_chain(read_chain(write(tmp_path)))
    path = write(tmp_path)
    (tmp_path / "small.onnx").write_bytes((MLP.parent / "digits_resnet.onnx").read_bytes())
    assert reasons(read_chain(path))["start"] == "it is stale: its teacher changed"


def test_a_training_that_does_not_load_its_weights_is_found_at_its_first_line(tmp_path):
    chain = read_chain(write(tmp_path, train=f"{TRAIN} --how fresh"))
    with pytest.raises(NotEquivalentError, match=r"m starts at val_loss 1 and its teacher ended at .* does not load"):
        run_chain(chain)


def test_a_training_that_fails_leaves_a_chain_that_goes_on(tmp_path):
    stages = [{"name": "m", "widen": {"factor": 1.25}, "train": f"{TRAIN} --how crash"}]
    with pytest.raises(TrainingError, match=r"ended with 1: .*01-m/train\.failed/log\.txt"):
        run_chain(read_chain(write(tmp_path, stages=stages)))
    chain = read_chain(write(tmp_path, stages=[{"name": "m", "widen": {"factor": 1.25}}]))
    assert reasons(chain) == {"start": "", "m": "it was not completed"}
    assert [row.name for row in run_chain(chain)] == ["start", "m"]


def test_a_stage_that_is_not_exact_is_refused_unless_asked_for(tmp_path):
    stages = [{"name": "m", "widen": {"factor": 1.5, "noise": 0.5}}]
    with pytest.raises(NotEquivalentError, match="not equivalent"):
        run_chain(read_chain(write(tmp_path, stages=stages)))
    rows = run_chain(read_chain(write(tmp_path, stages=[{**stages[0], "exact": False}])))
    assert [row.exact for row in rows] == [True, False]


def test_a_stage_may_be_filled_from_the_last(tmp_path):
    (tmp_path / "m.onnx").write_bytes(MLP.read_bytes())
    rows = run_chain(read_chain(write(tmp_path, stages=[{"name": "m", "target": "m.onnx"}])))
    assert rows[1].exact
    (tmp_path / "m.onnx").write_bytes((MLP.parent / "digits_resnet.onnx").read_bytes())
    with pytest.raises(RefusedError, match="not exact"):
        run_chain(read_chain(tmp_path / "chain.yaml"))


def test_the_baseline_is_the_last_network_alone(tmp_path):
    baseline = {"train": f"{TRAIN} --how fresh", "stop": {"steps": 20}}
    chain = read_chain(write(tmp_path, baseline=baseline))
    rows = run_chain(chain)
    assert (rows[-1].name, rows[-1].cost, rows[-1].outcome.first) == ("alone", rows[-2].cost, 1.0)
    saved = compute_saved(rows, chain.stages[-1].stop)
    assert saved.alone > saved.chain > 3


def test_two_runners_do_not_share_a_folder(tmp_path):
    chain = write(tmp_path, train=f"{TRAIN} --how hang")
    first = subprocess.Popen([sys.executable, "-m", "onnx_net2net", "chain", str(chain)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/00-start/train.running-*/metrics.jsonl")))
        with pytest.raises(BadInputError, match=r"another runner works in .*runs"):
            run_chain(read_chain(chain))
    finally:
        first.kill()
        first.wait()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_chain_that_is_killed_again_and_again_comes_to_the_same(tmp_path):
    (tmp_path / "calm").mkdir()
    calm = run_chain(read_chain(write(tmp_path / "calm")))
    (tmp_path / "rough").mkdir()
    path, draw = write(tmp_path / "rough"), random.Random(0)
    for _ in range(10):
        runner = subprocess.Popen([sys.executable, "-m", "onnx_net2net", "chain", str(path)], stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(1, 6))
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    assert table(run_chain(read_chain(path))) == table(calm)
