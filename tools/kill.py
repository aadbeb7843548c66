"""Kill writers at random moments, and see that every file is whole.

    python tools/kill.py --runs 200 --seed 1

Each run has an older output, starts a command that replaces it (every third time two at once), and ends the first one
by KILL, TERM, INT or HUP: after a random time, or in front of a random operation on the files, most of which happen
within the milliseconds in which the output is replaced. Afterwards the output is the old or a new one, whole; what the
command said is true; and the next command that writes beside it leaves nothing but the outputs. The exit code is 1 if
any of this fails. Runs on systems that fork.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import verify, widen  # noqa: F401  what children need is imported once
from onnx_net2net.cli import main as cli
from onnx_net2net.model.model import load

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OUTPUTS = {"widen": "s.onnx", "deepen": "s.onnx", "checkpoint": "s.safetensors"}


def make_teacher(path: Path, size: int, layers: int = 3) -> None:
    """Write a network of matrices with external data."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index in range(layers):
        values = (rng.standard_normal((size, size)) / size**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"fc{index}.weight"))
        nodes.append(helper.make_node("MatMul", [last, f"fc{index}.weight"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
        last = f"r{index}"
    shape = ["N", size]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last)]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def digest(path: Path) -> str:
    """Return what tells an output from others, whatever its data file is called.

    Raises:
        Exception: If it is not whole.
    """
    if path.suffix != ".onnx":
        from onnx_net2net.framework.formats.state_dicts import read

        entries = read(path)
        return hashlib.sha256(b"".join(entries[name].read().tobytes() for name in sorted(entries))).hexdigest()
    model = load(path)
    parts = [model.tensor(tensor).tobytes() for tensor in model.proto.graph.initializer]
    parts += [node.op_type.encode() for node in model.proto.graph.node]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def files_of(path: Path) -> set[str]:
    """Return the names of the files that an output consists of."""
    if path.suffix != ".onnx":
        return {path.name}
    return {source.name for source in load(path).sources}


def command_line(folder: Path, command: str, variant: int) -> list[str]:
    """Return a command; each variant makes another output."""
    teacher, output = str(folder / "t.onnx"), str(folder / OUTPUTS[command])
    if command == "checkpoint":
        return ["checkpoint", teacher, str(folder / f"g{variant}.onnx"), "-o", output]
    how = (
        ["--factor", str(1.25 + variant / 4)] if command == "widen" else ["--after", "fc0", "--count", str(variant + 1)]
    )
    return [command, teacher, "-o", output, *how, *(["--no-verify"] if variant % 2 else [])]


@contextlib.contextmanager
def forked(arguments: Sequence[str], errors: Path, ambush: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Run a command in a child with the modules of this process; yields its process number."""
    child = os.fork()
    if not child:
        code = 70
        try:
            descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            ambush()
            code = cli.main(arguments)
        finally:
            os._exit(code)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def finish(child: int) -> int:
    """Wait for a child and return its exit code, 128 + N where a signal ended it."""
    status = os.waitpid(child, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def ambush_at(folder: Path, number: int, sent: signal.Signals) -> Callable[[], None]:
    """Return what makes a process send itself a signal in front of an operation on the files of a folder."""

    def arm() -> None:
        seen = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event.startswith(("os.", "open", "shutil.")) and any(str(folder) in str(a) for a in arguments):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), sent)

        sys.addaudithook(watch)

    return arm


def operations(folder: Path, arguments: Sequence[str]) -> tuple[int, float]:
    """Return how many operations on the files of a folder a command makes, and how long it takes."""
    reader, writer = os.pipe()

    def count() -> None:
        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event.startswith(("os.", "open", "shutil.")) and any(str(folder) in str(a) for a in arguments):
                os.write(writer, b".")

        sys.addaudithook(watch)

    started = time.monotonic()
    with forked(arguments, folder.parent / "errors", count) as child:
        if finish(child):
            raise RuntimeError((folder.parent / "errors").read_text())
    os.close(writer)
    with open(reader, "rb") as file:
        return len(file.read()), time.monotonic() - started


def attack(
    folder: Path, command: str, rng: random.Random, budget: tuple[int, float], known: Sequence[str]
) -> list[str]:
    """Kill one writer and return what is wrong afterwards; `known` are the digests of the variants 0, 1 and 2."""
    output, errors = folder / OUTPUTS[command], folder.parent / "errors"
    sent, by_time, is_race = rng.choice(SIGNALS), rng.random() < 0.3, rng.random() < 0.3
    moment = rng.uniform(0, budget[1]) if by_time else rng.randint(1, budget[0])
    ambush = (lambda: None) if by_time else ambush_at(folder, int(moment), sent)
    before = digest(output)
    where = f"{command}, {sent.name} " + (f"after {moment:.2f} s" if by_time else f"at operation {moment}")
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(forked(command_line(folder, command, 1), errors, ambush))
        rival = None
        if is_race:
            where += " beside another writer"
            other = forked(command_line(folder, command, 2), errors.with_name("rival"))
            rival = stack.enter_context(other)
        if by_time:
            time.sleep(moment)
            os.kill(child, sent)
        code = finish(child)
        wrong = []
        if rival is not None and (rival_code := finish(rival)):
            wrong.append(f"the other writer ended with {rival_code}: {errors.with_name('rival').read_text().strip()}")
    said = errors.read_text()
    if code not in (0, 128 + sent):
        wrong.append(f"exit code {code}: {said.strip()}")
    if "Traceback" in said:
        wrong.append(f"traceback: {said.strip()}")
    try:
        after = digest(output)
    except Exception as error:
        return [f"{where}: the output is broken: {error}", *wrong]
    if after not in ({before, known[1]} if rival is None else {known[1], known[2]}):
        wrong.append("the output is none of those that it can be")
    if rival is None and code == 128 + sent and said and ("nothing written" in said) != (after == before):
        wrong.append(f"it says {said.strip()!r}, but the output {'stayed' if after == before else 'changed'}")
    if said and sent != signal.SIGKILL:
        wrong += [f"left behind: {name}" for name in os.listdir(folder) if name.endswith(".net2net") and rival is None]
    next_output = folder / "next.onnx"
    widen(folder / "small.onnx", factor=1.5).student.save(next_output)
    wanted = {"t.onnx", "t.onnx.data", "small.onnx", "small.onnx.data", *files_of(output), *files_of(next_output)}
    wanted |= {name for name in os.listdir(folder) if name.startswith("g")}
    for name in set(os.listdir(folder)) - wanted:
        wrong.append(f"litter: {name}")
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    if digest(output) != after:
        wrong.append("the next writer changed the output")
    for name in files_of(next_output):
        (folder / name).unlink()
    return [f"{where}: {text}" for text in wrong]


def run(runs: int, seed: int, size: int, commands: Sequence[str] = tuple(OUTPUTS)) -> Iterator[tuple[str, list[str]]]:
    """Yield the command and what is wrong, for each run."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill.") as temporary:
        prepared: dict[str, tuple[Path, tuple[int, float], list[str]]] = {}
        for command in commands:
            folder = Path(temporary) / command / "files"
            folder.mkdir(parents=True)
            make_teacher(folder / "t.onnx", size)
            make_teacher(folder / "small.onnx", 32)
            for variant in range(3) if command == "checkpoint" else ():
                widen(folder / "t.onnx", factor=1.25 + variant / 4).student.save(folder / f"g{variant}.onnx")
            known, budget = [], (0, 0.0)
            for variant in (1, 2, 0):
                budget = max(budget, operations(folder, command_line(folder, command, variant)))
                known.append(digest(folder / OUTPUTS[command]))
            prepared[command] = folder, budget, [known[2], *known[:2]]
        for number in range(runs):
            command = commands[number % len(commands)]
            folder, budget, known = prepared[command]
            if digest(folder / OUTPUTS[command]) != known[0]:
                operations(folder, command_line(folder, command, 0))
            yield command, attack(folder, command, rng, budget, known)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=768, help="units of the teacher's layers")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for command, wrong in run(options.runs, options.seed, options.size):
        counts[command] += 1
        counts["failed"] += bool(wrong)
        for line in wrong:
            print(line, flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
