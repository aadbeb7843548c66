"""A disk that is full: it is said in one line, nothing stays half-written, and once there is room it ends the same."""

import errno
import os
import re
import shutil
import subprocess

import pytest
from chains import write
from commands import MLP
from searches import explore, population, rounds_table, stages_table, trials_table

from onnx_net2net.errors import BadInputError, WriteError
from onnx_net2net.search import search as searching
from onnx_net2net.search.chain import run_chain
from onnx_net2net.search.folders import write_json
from onnx_net2net.search.growing import SavedNetwork
from onnx_net2net.search.promote import promote
from onnx_net2net.search.stages import read_chain

TOLD = re.compile(r"cannot (write|use the study) .*(No space left on device|disk is full|are needed, the disk has)")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and what sets its size in kB."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kilobytes, *, is_new=False):
        how = f"{'' if is_new else 'remount,'}size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not shutil.which("mount") or not size(100, is_new=True):
        pytest.skip("makes a disk by mount, which it may not")
    yield place, size
    subprocess.run(["umount", "-l", str(place)], check=True)


def searched(folder):
    return trials_table(explore(folder))


def chained(folder):
    path = folder / "chain.yaml"
    return stages_table(run_chain(read_chain(path if path.exists() else write(folder))))


def bred(folder):
    return rounds_table(population(folder).run())


@pytest.mark.slow
@pytest.mark.parametrize("run", [searched, chained, bred])
def test_a_disk_that_is_full_again_and_again_does_not_change_the_result(run, disk, tmp_path):
    (tmp_path / "calm").mkdir()
    calm, (place, size), kilobytes, errors = run(tmp_path / "calm"), disk, 250, []
    for _ in range(60):
        assert size(kilobytes)
        kilobytes = int(kilobytes * 1.2)
        try:
            found = run(place)
            break
        except BadInputError as error:
            errors.append(str(error))
    assert [error for error in errors if not TOLD.match(error)] == []
    assert found == calm
    assert len(errors) >= 5
    left = [path.name for path in place.rglob("*") if re.search(r"\.(running-\d+|failed|net2net|new)$", path.name)]
    assert not left


def test_a_full_disk_does_not_drop_a_candidate(tmp_path, monkeypatch):
    pytest.importorskip("optuna")

    def grow_network(*_):
        raise WriteError("cannot write student.onnx: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(searching, "grow_network", grow_network)
        with pytest.raises(WriteError):
            explore(tmp_path, budget=2, batch=2)
    assert {trial.state for trial in explore(tmp_path, budget=2, batch=2)} == {"complete", "pruned"}


def test_the_winner_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("state.pt", "optimizer.pt"):
        (tmp_path / name).write_bytes(b"new")
    network, best = SavedNetwork(MLP, tmp_path / "state.pt", tmp_path / "optimizer.pt", own=True), tmp_path / "best"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(WriteError, match=r"best: No space left on device"):
            promote(network, best)
    assert os.listdir(best) == []
    promote(network, best)
    assert sorted(os.listdir(best)) == ["teacher.onnx", "teacher.optimizer.pt", "teacher.pt"]
    promote(SavedNetwork(MLP, tmp_path / "state.pt", own=True), best)
    assert sorted(os.listdir(best)) == ["teacher.onnx", "teacher.pt"]


def test_a_file_of_json_stays_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "made.json"
    write_json(path, 1)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=r"cannot write .*made\.json: No space left"):
        write_json(path, 2)
    assert path.read_text() == "1"
    assert os.listdir(tmp_path) == ["made.json"]
