"""The training protocol: what a command is given, how it is followed and stopped, and what happens when it fails."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chains import TRAINER

from onnx_net2net.errors import BadInputError, WriteError
from onnx_net2net.search.training import LOG, Stop, Template, TrainingError, checkpoint_of, completed, train

STOP = Stop("val_loss", silence=20.0, grace=20.0)


def template(more="", folder=None):
    text = f"{sys.executable} {TRAINER} --init {{init}} --out {{out}} --steps {{steps}} {more}"
    return Template.of(text, folder or Path.cwd())


@pytest.fixture
def init(tmp_path):
    path = tmp_path / "init.safetensors"
    path.write_bytes(b"weights")
    return path


def run(tmp_path, init, more="", stop=STOP, steps=3):
    return train(template(more), {"init": init}, tmp_path / "run", dataclasses.replace(stop, steps=steps))


def test_a_training_is_followed_and_leaves_its_folder(tmp_path, init):
    heard = []
    stop = dataclasses.replace(STOP, steps=3)
    outcome = train(template(), {"init": init}, tmp_path / "run", stop, lambda *line: heard.append(line))
    assert outcome.curve == heard == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]
    assert (outcome.first, outcome.last, outcome.steps, outcome.ended) == (1.0, 0.25, 3, "finished")
    assert outcome.extras == {"accuracy": 0.5}
    state, optimizer, model = checkpoint_of(tmp_path / "run")
    assert state.read_bytes() == b"weights"
    assert optimizer is model is None
    assert dataclasses.asdict(completed(tmp_path / "run")) == dataclasses.asdict(outcome)


@pytest.mark.parametrize(
    ("stop", "ended", "least"),
    [
        ({"target": 0.34}, "target", 3),
        ({"patience": 2, "mode": "max"}, "patience", 3),
        ({"seconds": 1.0}, "seconds", 1),
    ],
)
def test_a_training_ends_where_it_is_told_to(tmp_path, init, stop, ended, least):
    outcome = run(tmp_path, init, "--wait 0.2", dataclasses.replace(STOP, **stop), steps=10_000)
    assert outcome.ended == ended
    assert least <= len(outcome.curve) < 1000
    assert checkpoint_of(tmp_path / "run")[0].read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("how", "cause", "words"),
    [
        ("crash", "crash", "ended with 1: RuntimeError: out of memory"),
        ("nan", "number", "val_loss is nan at step 2"),
        ("words", "metric", "no 'val_loss'"),
        ("garbage", "metric", "line 2 of metrics.jsonl is no JSON object"),
        ("empty", "checkpoint", "left no state.safetensors or state.pt"),
    ],
)
def test_a_training_that_fails_is_told_by_its_cause(tmp_path, init, how, cause, words):
    with pytest.raises(TrainingError, match=words) as caught:
        run(tmp_path, init, f"--how {how}")
    assert caught.value.cause == cause
    assert (tmp_path / "run.failed" / LOG).exists()
    assert completed(tmp_path / "run") is None


def test_a_training_that_finds_the_disk_full_is_not_to_blame(tmp_path, init):
    with pytest.raises(WriteError, match=r"cannot write .*run\.running.*: No space left on device"):
        run(tmp_path, init, "--how full")
    assert not list(tmp_path.glob("run*"))
    assert run(tmp_path, init).steps == 3


def test_a_training_that_hangs_is_ended(tmp_path, init):
    with pytest.raises(TrainingError, match=r"wrote no line to metrics\.jsonl for 1 s") as caught:
        run(tmp_path, init, "--how hang", dataclasses.replace(STOP, silence=1.0))
    assert caught.value.cause == "silence"


def test_a_training_that_does_not_listen_is_ended(tmp_path, init):
    stop = dataclasses.replace(STOP, target=0.5, grace=0.5)
    with pytest.raises(TrainingError, match=r"did not end within 0\.5 s of SIGTERM"):
        run(tmp_path, init, "--how deaf --wait 0.2", stop, steps=10_000)


def test_a_command_that_does_not_exist_is_named(tmp_path, init):
    with pytest.raises(TrainingError, match="cannot run no-such-command"):
        train(Template.of("no-such-command {init} {out}", tmp_path), {"init": init}, tmp_path / "run", STOP)


def test_a_command_that_takes_no_steps_is_asked_to_end(tmp_path, init):
    text = f"{sys.executable} {TRAINER} --init {{init}} --out {{out}} --steps 1000 --wait 0.1"
    outcome = train(Template.of(text, tmp_path), {"init": init}, tmp_path / "run", dataclasses.replace(STOP, steps=3))
    assert outcome.ended == "steps"
    assert 3 <= outcome.steps < 100


def is_alive(pid):
    try:
        os.kill(pid, 0)
        if not Path("/proc").exists():
            return True
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]  # gone between the two: an OSError, too
    except OSError:
        return False


def test_the_training_of_a_killed_runner_ends(tmp_path, init):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; from test_training import *; "
        "run(Path(sys.argv[2]), Path(sys.argv[3]), '--how orphan')"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, TRAINER.parent, tmp_path, init])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer = int((tmp_path / "pid").read_text())
    assert is_alive(trainer)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    while is_alive(trainer):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    outcome = run(tmp_path, init)  # what is left of the killed one does not matter
    assert outcome.steps == 3
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train {innit} {out}", r"\{innit\}, which is none of \{init\}, \{optimizer\}"),
        ("train {init}", r"needs \{out\}, and \{init\} or \{student\}"),
        ("train {out}", r"needs \{out\}, and \{init\} or \{student\}"),
        ("train '{init} {out}", "cannot be read: No closing quotation"),
    ],
)
def test_a_template_that_cannot_work_is_refused(tmp_path, text, words):
    with pytest.raises(BadInputError, match=words):
        Template.of(text, tmp_path)


def test_a_template_is_filled_word_by_word(tmp_path):
    made = Template.of("""train --a {init} --o={optimizer} --json '{"x": {rate}}' {out}""", tmp_path, ("rate",))
    assert made.filled({"init": "a file; rm -rf", "rate": 0.1, "out": "o"}) == [
        "train", "--a", "a file; rm -rf", "--o=", "--json", '{"x": 0.1}', "o",
    ]  # fmt: skip
    assert made.names("rate")
    assert not made.names("features")
