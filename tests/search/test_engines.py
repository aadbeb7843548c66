"""Ray Tune comes to the same as the local pool, and a worker that dies is replaced."""

import os
import sys

import pytest
from chains import TRAINER
from searches import explore, trials_table

from onnx_net2net.errors import WriteError
from onnx_net2net.search.engines import Cluster, Job, Local
from onnx_net2net.search.training import Stop, Template, TrainingError

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

STOP = Stop("val_loss", steps=3, silence=60)

KILLER = """
import os, subprocess, sys
from pathlib import Path
mark = Path(sys.argv[1])
if not mark.exists():
    mark.touch()
    guard = os.getppid()
    worker = int(Path(f"/proc/{guard}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, 9)
    import time; time.sleep(60)
sys.exit(subprocess.call(sys.argv[2:]))
"""


@pytest.fixture
def init(tmp_path):
    path = tmp_path / "init.safetensors"
    path.write_bytes(b"weights")
    return path


def jobs(folder, init, hows):
    text = f"{sys.executable} {TRAINER} --init {{init}} --out {{out}} --steps {{steps}} --how {{how}}"
    template = Template.of(text, folder, ("how",))
    return [
        Job(str(number), template, {"init": init, "how": how}, folder / f"run-{number}", STOP)
        for number, how in enumerate(hows)
    ]


def told(outcomes):
    return [str(o).partition(", see")[0] if isinstance(o, TrainingError) else o.curve for o in outcomes]


def test_ray_comes_to_the_same_as_the_local_pool(tmp_path, init):
    hows = ("well", "crash", "nan")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    heard = []
    here = Local(2).run(jobs(tmp_path / "a", init, hows), lambda *_: None)
    home = set(os.listdir(os.path.expanduser("~")))
    there = Cluster(2, tmp_path / "ray").run(jobs(tmp_path / "b", init, hows), lambda *line: heard.append(line))
    assert told(here) == told(there)
    assert len(heard) == 4
    new = set(os.listdir(os.path.expanduser("~"))) - home
    assert not {name for name in new if "ray" in name}  # no token


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the worker by /proc")
def test_a_worker_that_dies_is_replaced(tmp_path, init):
    (tmp_path / "killer.py").write_text(KILLER)
    text = f"{sys.executable} {tmp_path / 'killer.py'} {tmp_path / 'mark'} {sys.executable} {TRAINER} --init {{init}} "
    template = Template.of(text + "--out {out} --steps {steps}", tmp_path)
    job = Job("0", template, {"init": init}, tmp_path / "run", STOP)
    (outcome,) = Cluster(1, tmp_path / "ray").run([job], lambda *_: None)
    assert (tmp_path / "mark").exists()
    assert outcome.steps == 3


def test_an_exploration_on_ray_ranks_as_in_the_local_pool(tmp_path):
    here = explore(tmp_path, engine=Local(2), name="here")
    there = explore(tmp_path, engine=Cluster(2, tmp_path / "ray"), name="there")
    assert trials_table(here) == trials_table(there)
    assert len({len(trial.outcomes) for trial in here}) > 1  # there was something to rank


def test_a_full_disk_in_a_worker_ends_the_search_and_fails_no_training(tmp_path, init):
    (job,) = jobs(tmp_path, init, ["full"])
    with pytest.raises(WriteError, match="No space left on device"):
        Cluster(1, tmp_path / "ray").run([job], lambda *_: None)
    assert not list(tmp_path.glob("run-*"))
