"""Outputs are whole, whoever else writes, whatever is full, and whenever a writer is stopped."""

import contextlib
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import load, verify, widen
from onnx_net2net.cli import main as cli
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model import saving, staging
from onnx_net2net.run.session import LEVELS, Runner

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MODELS = Path(__file__).resolve().parents[2] / "models"


def mlp(width=64, seed=0):
    """Two matrices, the first one of `width` columns."""
    rng = np.random.default_rng(seed)
    arrays = {"up": rng.standard_normal((16, width)), "down": rng.standard_normal((width, 24))}
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", size]) for n, size in (("x", 16), ("y", 24))]
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(path, width=64, seed=0):
    """Save a network with external data, and load it."""
    onnx.save(mlp(width, seed), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return load(path)


def student(path, width):
    """Return a network in memory that is saved with external data."""
    return Graph(external(path.with_name(f"teacher{width}.onnx"), width)).finish()


def width_of(path):
    """Return the width of a network after reading all of it."""
    model = load(path)
    for tensor in model.proto.graph.initializer:
        assert model.tensor(tensor).numpy().std() > 0.5
    return model.proto.graph.initializer[0].dims[1]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("teacher"))


@pytest.fixture
def run(capfd):
    """Run the command line; returns the exit code and what stands on stderr."""

    def call(*arguments):
        capfd.readouterr()
        code = cli.main([os.fspath(argument) for argument in arguments])
        err = capfd.readouterr().err
        assert "Traceback" not in err
        return code, err

    return call


# --- Writers of one folder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_two_writers_of_one_output(tmp_path, swapped):
    path = tmp_path / "s.onnx"
    with student(path, 72).stage(path) as first, student(path, 80).stage(path) as second:
        one, other = (second, first) if swapped else (first, second)
        one.commit()
        assert width_of(path) == (80 if swapped else 72)
        other.commit()
    assert width_of(path) == (72 if swapped else 80)
    assert names(tmp_path) == ["s.onnx", "s.onnx.1.data"]


def test_many_writers_of_one_output(tmp_path):
    path = tmp_path / "s.onnx"
    students = [student(path, width) for width in range(72, 136, 8)]
    failures = []

    def write(model):
        try:
            model.save(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(model,)) for model in students * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert width_of(path) in range(72, 136, 8)
    assert len(names(tmp_path)) == 2


def test_data_of_another_model_stay(tmp_path):
    path = tmp_path / "s.onnx"
    student(path, 72).save(path)
    shutil.copy(path, tmp_path / "copy")
    student(path, 80).save(path)
    assert (width_of(path), width_of(tmp_path / "copy")) == (80, 72)
    student(path, 88).save(path)  # nobody else names these
    assert names(tmp_path) == ["copy", "s.onnx", "s.onnx.2.data", "s.onnx.data"]


@pytest.mark.parametrize("location", ["sub/../s.onnx.data", "./s.onnx.data", "s.onnx.data"])
def test_names_of_data_however_written(tmp_path, location):
    data = tmp_path / "s.onnx.data"
    data.touch()
    proto = mlp()
    saving.set_external(proto.graph.initializer[0], {"location": location})
    (tmp_path / "m").write_bytes(proto.SerializeToString())
    assert staging._is_named(data)


def test_a_longer_name_is_another_one(tmp_path):
    path = tmp_path / "s.onnx"
    for name in ("xs.onnx", "s.onnx.1.onnx", "models.onnx"):
        student(path, 64).save(tmp_path / name)
    student(path, 72).save(path)
    student(path, 80).save(path)
    assert "s.onnx.data" not in names(tmp_path)


def test_a_folder_in_the_place_of_old_data(tmp_path, run):
    external(tmp_path / "t.onnx")
    assert run("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.25", "--no-verify")[0] == 0
    (tmp_path / "s.onnx.data").unlink()
    (tmp_path / "s.onnx.data").mkdir()
    assert run("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5") == (0, "")
    assert width_of(tmp_path / "s.onnx") == 96
    assert (tmp_path / "s.onnx.data").is_dir()


def test_old_data_that_cannot_be_removed_are_a_warning(tmp_path, run, monkeypatch, caplog):
    external(tmp_path / "t.onnx")
    unlink = os.unlink

    def refuse(path, **kwargs):
        if str(path).endswith("s.onnx.data"):
            raise PermissionError(13, "Permission denied")
        unlink(path, **kwargs)

    for factor in ("1.25", "1.5"):
        code, err = run("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", factor, "--no-verify")
        monkeypatch.setattr(os, "unlink", refuse)
    assert code == 0
    said = caplog.text + err  # a line on stderr, if nobody else listens
    assert "s.onnx.data is no longer needed, but cannot be removed: Permission denied" in said
    assert width_of(tmp_path / "s.onnx") == 96


def test_a_move_that_fails_changes_nothing(tmp_path, run, monkeypatch):
    external(tmp_path / "t.onnx")
    arguments = ("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--no-verify", "--factor")
    run(*arguments, "1.25")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def refuse(source, target):
        if target == tmp_path / "s.onnx":  # as in a sticky folder, or on Windows where somebody has opened it
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    code, err = run(*arguments, "1.5")
    assert (code, err) == (2, f"onnx-net2net: cannot write {tmp_path / 's.onnx'}: Operation not permitted\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- Places that are no files ------------------------------------------------------------------------------------


def make_pipe(path):
    os.mkfifo(path)
    return "it is a pipe"


def make_socket(path):
    with contextlib.chdir(path.parent) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        socket.socket(socket.AF_UNIX).bind(path.name)
    return "it is a socket"


def make_folder(path):
    path.mkdir()
    return "it is a folder"


def make_device(path):
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    return "it is a device"


def make_loop(path):
    path.symlink_to(path.name)
    return "Too many levels of symbolic links"


def make_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")
    return "it is a pipe"


def make_link_into_no_folder(path):
    path.symlink_to(path.parent / "none" / "s.onnx")
    return "the folder .*none does not exist"


SPECIAL = (make_pipe, make_socket, make_folder, make_device, make_loop, make_link_to_a_pipe, make_link_into_no_folder)


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_what_is_no_file_is_left_alone(tmp_path, run, make):
    if make is make_socket and not hasattr(contextlib, "chdir"):
        pytest.skip("names of sockets are short")
    external(tmp_path / "t.onnx")
    for name in ("s.onnx", "s.safetensors"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        text = make(folder / name)
        before = {entry.name: entry.lstat() for entry in folder.iterdir()}
        if name == "s.onnx":
            code, err = run("widen", tmp_path / "t.onnx", "-o", folder / name, "--factor", "1.5", "--no-verify")
            assert code == 2
        else:
            with pytest.raises(BadInputError) as caught:
                state_dicts.write(folder / name, ["a"], lambda _: np.zeros(3))
            err = f"onnx-net2net: {caught.value}\n"
        assert len(err.splitlines()) == 1
        assert re.search(f"cannot write .*{name}: {text}", err)
        after = {entry.name: entry.lstat() for entry in folder.iterdir()}
        assert {n: (s.st_ino, s.st_mode) for n, s in after.items()} == {
            n: (s.st_ino, s.st_mode) for n, s in before.items()
        }


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_link_leads_to_is_written(tmp_path, exists):
    (tmp_path / "real").mkdir()
    link, real = tmp_path / "link.onnx", tmp_path / "real" / "s.onnx"
    if exists:
        student(link, 72).save(real)
    link.symlink_to(real)
    student(link, 80).save(link)
    assert link.is_symlink()
    assert width_of(real) == 80
    assert len(names(tmp_path / "real")) == 2
    assert names(tmp_path) == ["link.onnx", "real"]


# --- Standard streams --------------------------------------------------------------------------------------------

WIDEN = f"widen '{MODELS / 'digits_mlp.onnx'}' -o s.onnx --factor 1.5 --no-verify"
STREAMS = {
    f"{WIDEN} --json >/dev/full": (0, True, "warning: cannot print the results: No space left on device"),
    f"{WIDEN} >/dev/full": (0, True, "warning: cannot print the results: No space left on device"),
    f"{WIDEN} >&-": (0, True, ""),
    f"{WIDEN} 2>&-": (0, True, ""),
    f"{WIDEN} <&- >&- 2>&-": (0, True, ""),
    "widen none.onnx -o s.onnx --factor 2 2>/dev/full": (2, False, ""),
    f"inspect '{MODELS / 'digits_mlp.onnx'}' >/dev/full": (
        2,
        False,
        "cannot print the results: No space left on device",
    ),
    "--version >/dev/full": (2, False, "cannot print the results: No space left on device"),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("command", STREAMS, ids=lambda command: command.replace(os.fspath(MODELS), "models"))
def test_streams_that_are_full_or_closed(tmp_path, command):
    code, is_written, text = STREAMS[command]
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m onnx_net2net {command}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert (tmp_path / "s.onnx").exists() == is_written
    assert done.stderr == (f"onnx-net2net: {text}\n" if text else "")
    if is_written:
        onnx.checker.check_model(onnx.load(tmp_path / "s.onnx"))


# --- Signals and kills -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stopped_command_leaves_nothing(tmp_path, run, monkeypatch, name):
    number = getattr(signal, name)
    external(tmp_path / "t.onnx")
    before = names(tmp_path)
    handler = signal.getsignal(number)

    def stop(*_, **__):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("onnx_net2net.cli.student.verify", stop)
    code, err = run("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5")
    assert (code, err) == (128 + number, "onnx-net2net: interrupted, nothing written\n")
    assert names(tmp_path) == before
    assert signal.getsignal(number) == handler


def test_an_error_that_an_interruption_turns_into_is_an_interruption(tmp_path, run, monkeypatch):
    """Modules in C that are being imported raise an ImportError instead."""
    external(tmp_path / "t.onnx")

    def stop(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("onnx_net2net.cli.student.verify", stop)
    code, err = run("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5")
    assert (code, err) == (128 + signal.SIGTERM, "onnx-net2net: interrupted, nothing written\n")
    assert not (tmp_path / "s.onnx").exists()


def test_a_command_goes_on_where_its_terminal_may_go(tmp_path, run, monkeypatch):
    monkeypatch.setattr("onnx_net2net.cli.student.verify", lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP))
    external(tmp_path / "t.onnx")
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        arguments = ("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5", "--noise", "0.1")
        assert run(*arguments) == (0, "")
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_between_the_moves_waits_for_the_last(tmp_path, run, monkeypatch, name):
    external(tmp_path / "t.onnx")
    arguments = ("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--no-verify", "--factor")
    run(*arguments, "1.25")
    replace = os.replace

    def signalled(source, target):
        replace(source, target)
        if target == tmp_path / "s.onnx.1.data":
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(os, "replace", signalled)
    code, err = run(*arguments, "1.5")
    assert (code, err) == (128 + getattr(signal, name), "onnx-net2net: interrupted, after s.onnx was written\n")
    assert width_of(tmp_path / "s.onnx") == 96
    assert names(tmp_path) == ["s.onnx", "s.onnx.1.data", "t.onnx", "t.onnx.data"]


def test_an_exception_between_the_moves_undoes_them(tmp_path, run, monkeypatch):
    external(tmp_path / "t.onnx")
    arguments = ("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--no-verify", "--factor")
    run(*arguments, "1.25")
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if target == tmp_path / "s.onnx.1.data":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    code, err = run(*arguments, "1.5")
    assert (code, err) == (130, "onnx-net2net: interrupted, nothing written\n")
    assert width_of(tmp_path / "s.onnx") == 80
    assert names(tmp_path) == ["s.onnx", "s.onnx.data", "t.onnx", "t.onnx.data"]


def killed_at(number, folder, work):
    """Do some work in a child that kills itself before an operation on a folder; tells whether it came that far."""
    child = os.fork()
    if not child:
        count = itertools.count(1)

        def watch(event, arguments):
            is_ours = event.startswith(("os.", "open", "shutil."))
            if is_ours and any(os.fspath(folder) in str(argument) for argument in arguments) and next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "here" / "s.onnx"
    path.parent.mkdir()
    old, new = (student(tmp_path / "t.onnx", width) for width in (72, 80))
    found = set()
    for number in itertools.count(1):
        old.save(path)
        if not killed_at(number, path.parent, lambda: new.save(path)):
            break
        found.add(width := width_of(path))
        old.save(path.with_name("next.onnx"))  # cleans up
        assert width_of(path) == width
        kinds = [name.replace(".1.", ".") for name in names(path.parent)]
        assert kinds == ["next.onnx", "next.onnx.data", "s.onnx", "s.onnx.data"]
    assert number > 15
    assert found == {72, 80}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_pair_that_belongs_together(tmp_path):
    """The next writer beside it brings back the first of two files where the second did not arrive."""
    folder = tmp_path / "here"
    folder.mkdir()
    path, state = folder / "s.safetensors", folder / "s.optimizer.pt"

    def save(value):
        beside = {state: lambda place: place.write_text(str(value))}
        state_dicts.write(path, ["a"], lambda _: np.full(8, value), beside=beside)

    found = set()
    for number in itertools.count(1):
        save(1)
        if not killed_at(number, folder, lambda: save(2)):
            break
        state_dicts.write(folder / "next.safetensors", ["a"], lambda _: np.zeros(3))
        value = state_dicts.read(path)["a"].read()[0]
        assert state.read_text() == str(value)
        assert names(folder) == ["next.safetensors", "s.optimizer.pt", "s.safetensors"]
        found.add(int(value))
    assert found == {1, 2}


def test_the_folder_of_a_writer_at_work_stays(tmp_path):
    path = tmp_path / "s.onnx"
    with student(path, 72).stage(path) as staged:
        student(path, 80).save(tmp_path / "other.onnx")
        assert width_of(staged.path) == 72
        staged.commit()
    assert width_of(path) == 72


def test_a_folder_that_somebody_else_has_locked(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(staging, "_PATIENCE", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    student(tmp_path / "s.onnx", 72).save(tmp_path / "s.onnx")
    os.close(descriptor)
    assert width_of(tmp_path / "s.onnx") == 72
    assert names(tmp_path) == ["s.onnx", "s.onnx.data"]


def test_what_only_looks_like_a_work_folder_stays(tmp_path):
    for name in (".s.onnx.abcd_123", "s.onnx.abcd_123.net2net", ".abcd_123.net2net"):
        (tmp_path / name).mkdir()
    (tmp_path / ".s.onnx.abcd_123.net2net").write_text("a file")
    before = names(tmp_path)
    student(tmp_path / "s.onnx", 72).save(tmp_path / "s.onnx")
    assert set(before) < set(names(tmp_path))


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """`tools/kill.py`, seeded and short."""
    environment = {**os.environ, "TMPDIR": os.fspath(tmp_path)}
    command = [sys.executable, TOOLS / "kill.py", "--runs", "24", "--seed", "3", "--size", "256"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Files that change, and full disks ---------------------------------------------------------------------------


def shorten(path):
    os.truncate(path, 1000)


def overwrite(path):
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [shorten, overwrite])
def test_data_that_change_while_they_are_read(tmp_path, change):
    widening = widen(external(tmp_path / "t.onnx", 4096), factor=1.5)
    change(tmp_path / "t.onnx.data")
    with pytest.raises(BadInputError, match=r"t\.onnx\.data changed while it was read$"):
        widening.student.save(tmp_path / "s.onnx")
    (tmp_path / "t.onnx.data").unlink()
    with pytest.raises(BadInputError, match=r"cannot read .*t\.onnx\.data: No such file or directory$"):
        widening.student.save(tmp_path / "s.onnx")
    assert names(tmp_path) == ["t.onnx"]


def test_data_that_shrink_under_an_open_array(tmp_path):
    model = external(tmp_path / "t.onnx", 4096)
    array = model.tensor(model.proto.graph.initializer[0]).numpy()
    expected = array.copy()
    os.truncate(tmp_path / "t.onnx.data", 0)
    np.testing.assert_array_equal(array, expected)


def test_a_state_dict_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "s.safetensors"
    state_dicts.write(path, ["a"], lambda _: np.ones(100_000))
    entry = state_dicts.read(path)["a"]
    np.testing.assert_array_equal(entry.read(), np.ones(100_000))
    os.truncate(path, 1000)
    with pytest.raises(BadInputError, match="changed while it was read"):
        entry.read()


@contextlib.contextmanager
def full_disk(size):
    """Let files end at some bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("has_data", [True, False], ids=["external", "single file"])
def test_a_full_disk_is_one_line(tmp_path, run, has_data):
    external(tmp_path / "t.onnx")
    if not has_data:
        onnx.save(mlp(), tmp_path / "t.onnx")
        (tmp_path / "t.onnx.data").unlink()
    arguments = ("widen", tmp_path / "t.onnx", "-o", tmp_path / "s.onnx", "--factor")
    before = names(tmp_path)
    with full_disk(5000):
        code, err = run(*arguments, "1.5")
    assert code == 2
    assert re.fullmatch(r"onnx-net2net: cannot write .*s.onnx: File too large\n", err)
    assert names(tmp_path) == before
    run(*arguments, "1.5")
    before = names(tmp_path)
    for suffix in (".safetensors", ".pt"):
        if suffix == ".pt":
            pytest.importorskip("torch")
        with full_disk(5000):
            code, err = run("checkpoint", tmp_path / "t.onnx", tmp_path / "s.onnx", "-o", tmp_path / f"c{suffix}")
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "File too large" in err
        assert names(tmp_path) == before


def test_two_files_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    path, state = tmp_path / "s.safetensors", tmp_path / "s.optimizer.pt"

    def save(value, fail=False):
        def write_state(place):
            place.write_text(str(value))
            if fail:
                raise BadInputError("cannot write it: the disk is full")

        state_dicts.write(path, ["a"], lambda _: np.full(8, value), beside={state: write_state})

    def content():
        return int(state_dicts.read(path)["a"].read()[0]), state.read_text(), names(tmp_path)

    save(1)
    before = content()
    assert before == (1, "1", ["s.optimizer.pt", "s.safetensors"])
    with pytest.raises(BadInputError, match="disk is full"):
        save(2, fail=True)
    assert content() == before
    replace = os.replace

    def refuse(source, target):
        if target == path:
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadInputError, match=r"cannot write .*s\.safetensors: Operation not permitted$"):
        save(3)
    assert content() == before


# --- Links of a cache --------------------------------------------------------------------------------------------


def test_models_of_a_cache_are_verified(tmp_path, run):
    """The model and its data are links into one other folder, where they have other names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    external(tmp_path / "t.onnx")
    for name, blob in (("t.onnx", "aa"), ("t.onnx.data", "bb")):
        os.rename(tmp_path / name, blobs / blob)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob))
    assert run("widen", snapshot / "t.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5") == (0, "")
    assert verify(snapshot / "t.onnx", tmp_path / "s.onnx").equivalent
    runner = Runner(snapshot / "t.onnx", LEVELS[0], provider="CPUExecutionProvider")
    expected = onnx.reference.ReferenceEvaluator(mlp()).run(None, {"x": np.ones((1, 16), np.float32)})[0]
    np.testing.assert_allclose(runner({"x": np.ones((1, 16), np.float32)})["y"], expected, rtol=1e-4, atol=1e-4)
