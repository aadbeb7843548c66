"""How fast, in how much memory: this package beside what one would compare it with, on one machine in one run.

Two questions. *Weights*: how long it takes to widen a large model with external data, beside loading and saving the
result with onnx and beside copying its files. *Nodes*: how the time to find the dims grows with the size of a graph.
Wall times of a shared machine are noisy; CPU times, peaks and the ratios of medians are less so.

    python tools/benchmark.py                 # 1 GB of weights, up to 50 000 nodes
    python tools/benchmark.py --quick --json benchmark.json

Memory is the peak of *anonymous* memory (RssAnon of Linux): what the process allocated, not the pages of mapped files,
which the kernel drops when it needs to.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FACTOR = 1.125
WIDTH = 2048
NODES = (1_000, 5_000, 20_000, 50_000)
POLL_SECONDS = 0.01

OPSET = [helper.make_opsetid("", 17)]


@dataclass(frozen=True)
class Cost:
    """What one run of a process took."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


# --- Models -----------------------------------------------------------------------------------------------------


class _DataFile:
    """External data that is written tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self._file, self._name = path.open("wb"), path.name
        self._rng = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> TensorProto:
        """Append a random weight and return the tensor that refers to it."""
        values = self._rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        entries = {"location": self._name, "offset": self._file.tell(), "length": values.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(values.data)
        return tensor

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def write_large(path: Path, nbytes: int, width: int) -> None:
    """Write a model with about so many bytes of external data: a residual stack of MatMul, Add and Relu."""
    data = _DataFile(path.with_suffix(".data"))
    blocks = max(1, nbytes // (2 * 4 * width * 2 * width))
    nodes, weights = [helper.make_node("MatMul", ["x", "first"], ["x0"])], [data.weight("first", 64, width)]
    for k in range(blocks):
        weights += [data.weight(f"up{k}", width, 2 * width), data.weight(f"b{k}", 2 * width)]
        weights += [data.weight(f"down{k}", 2 * width, width)]
        nodes += [
            helper.make_node("MatMul", [f"x{k}", f"up{k}"], [f"m{k}"], name=f"block{k}/up"),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"], name=f"block{k}/add"),
            helper.make_node("Relu", [f"a{k}"], [f"r{k}"], name=f"block{k}/relu"),
            helper.make_node("MatMul", [f"r{k}", f"down{k}"], [f"d{k}"], name=f"block{k}/down"),
            helper.make_node("Add", [f"x{k}", f"d{k}"], [f"x{k + 1}"], name=f"block{k}/residual"),
        ]
    weights.append(data.weight("last", width, 10))
    nodes.append(helper.make_node("MatMul", [f"x{blocks}", "last"], ["y"]))
    data.close()
    _write(path, nodes, ("x", ["n", 64]), ("y", ["n", 10]), weights)


def write_chain(path: Path, count: int) -> None:
    """Write a graph of about so many nodes, residual blocks of Conv, BatchNormalization, Relu and Add; tiny weights."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, rng.random(shape, np.float32).tobytes(), raw=True)

    weights, nodes = [weight("first", 8, 3, 1, 1)], [helper.make_node("Conv", ["x", "first"], ["x0"])]
    for k in range(count // 4):
        norms = [f"{part}{k}" for part in ("scale", "bias", "mean", "var")]
        weights += [weight(f"w{k}", 8, 8, 1, 1), *(weight(name, 8) for name in norms)]
        nodes += [
            helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"c{k}"], name=f"block{k}/conv"),
            helper.make_node("BatchNormalization", [f"c{k}", *norms], [f"n{k}"], name=f"block{k}/norm"),
            helper.make_node("Relu", [f"n{k}"], [f"r{k}"], name=f"block{k}/relu"),
            helper.make_node("Add", [f"x{k}", f"r{k}"], [f"x{k + 1}"], name=f"block{k}/add"),
        ]
    weights.append(weight("last", 4, 8, 1, 1))
    nodes.append(helper.make_node("Conv", [f"x{count // 4}", "last"], ["y"]))
    _write(path, nodes, ("x", ["n", 3, 16, 16]), ("y", ["n", 4, 16, 16]), weights)


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    entry: tuple[str, list[Any]],
    result: tuple[str, list[Any]],
    weights: Sequence[TensorProto],
) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (entry, result)]
    graph = helper.make_graph(nodes, "benchmark", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=8)
    path.write_bytes(model.SerializeToString())


# --- Tasks, each run in a process of its own --------------------------------------------------------------------


def task_widen(source: str, target: str) -> None:
    """Widen and save, without verification."""
    from onnx_net2net.operations.widen.widen import widen

    widen(source, factor=FACTOR).student.save(target)


def task_inspect(source: str) -> None:
    """Find the dims."""
    from onnx_net2net.analysis.groups import inspect

    inspect(source)


def task_onnx(source: str, target: str) -> None:
    """Load and save with onnx."""
    onnx.save(onnx.load(source), target, save_as_external_data=True, location=f"{Path(target).name}.data")


def task_scale(source: str) -> None:
    """Find the dims, then widen, and print how long each part took, as JSON."""
    from onnx_net2net.analysis import inference
    from onnx_net2net.analysis.groups import inspect
    from onnx_net2net.graph import sizes
    from onnx_net2net.model.model import load
    from onnx_net2net.operations.widen.widen import widen

    parts: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                parts[name] = time.perf_counter() - start

        return call

    sizes.infer = timed("sizes", sizes.infer)
    model = timed("load", load)(source)
    timed("sizes and dims", inference.infer)(model)
    parts["dims"] = parts.pop("sizes and dims") - parts["sizes"]
    shown = dict(parts)
    timed("inspect", inspect)(model)
    timed("widen", widen)(model, factor=2)
    print(json.dumps({**shown, "inspect": parts["inspect"], "widen": parts["widen"]}))


_TASKS: dict[str, Callable[..., None]] = {
    "widen": task_widen,
    "inspect": task_inspect,
    "onnx": task_onnx,
    "scale": task_scale,
}


def _task(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, os.path.abspath(__file__), "--task", name, *map(str, arguments)]


# --- Measurement ------------------------------------------------------------------------------------------------


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: If it fails.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        peak = 0
        while True:
            peak = max(peak, _anonymous_bytes(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(POLL_SECONDS)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak)


def _anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process, 0 where it is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended, or this is not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def median(costs: Sequence[Cost]) -> Cost:
    """Return the medians of times, and the largest peak."""
    wall, cpu = (statistics.median(getattr(c, name) for c in costs) for name in ("wall_seconds", "cpu_seconds"))
    return Cost(wall, cpu, max(cost.peak_bytes for cost in costs))


# --- Weights ----------------------------------------------------------------------------------------------------


def _contestants(teacher: Path, student: Path, target: Path) -> dict[str, list[str]]:
    """Return what is compared: commands that write to `target`."""
    if importlib.util.find_spec("onnx_net2net.cli.main") and importlib.util.find_spec("onnx_net2net.__main__"):
        command = [sys.executable, "-m", "onnx_net2net"]
        options = ["-o", str(target), "--factor", str(FACTOR), "--no-verify"]
        ours = [*command, "widen", str(teacher), *options]
        look = [*command, "inspect", str(teacher)]
    else:
        ours, look = _task("widen", teacher, target), _task("inspect", teacher)
    files = [str(path) for path in sorted(student.parent.iterdir())]
    return {
        "widen": ours,
        "onnx load + save of the result": _task("onnx", student, target),
        "cp of the result": ["cp", *files, str(target.parent)],
        "inspect": look,
    }


def compare(folder: Path, nbytes: int, repeat: int) -> dict[str, Cost]:
    """Run all contestants in turn, several times; returns the median of each."""
    teacher, student, output = folder / "teacher" / "model.onnx", folder / "student" / "model.onnx", folder / "out"
    teacher.parent.mkdir()
    student.parent.mkdir()
    write_large(teacher, nbytes, WIDTH if nbytes >= 5e8 else WIDTH // 4)
    measure(_task("widen", teacher, student))
    contestants = _contestants(teacher, student, output / "model.onnx")
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for _ in range(repeat):
        for name, command in contestants.items():
            output.mkdir()
            os.sync()  # so that nobody pays for what an earlier one has left to write
            costs[name].append(measure(command))
            shutil.rmtree(output)
    shutil.rmtree(teacher.parent)
    shutil.rmtree(student.parent)
    return {name: median(found) for name, found in costs.items()}


def weights_table(costs: dict[str, Cost]) -> str:
    """Lay out the comparison."""
    _, onnx_cost, copy_cost, *_ = costs.values()
    rows = []
    for name, cost in costs.items():
        to_onnx, to_copy = cost.wall_seconds / onnx_cost.wall_seconds, cost.wall_seconds / copy_cost.wall_seconds
        times = (f"{cost.wall_seconds:.2f} s", f"{to_onnx:.2f}", f"{to_copy:.2f}")
        cpu = (f"{cost.cpu_seconds:.2f} s", f"{cost.cpu_seconds / onnx_cost.cpu_seconds:.2f}")
        rows.append((name, *times, *cpu, f"{cost.peak_bytes / 1e9:.3f} GB"))
    header = ("", "wall", "wall / onnx", "wall / cp", "CPU", "CPU / onnx", "peak anonymous memory")
    return markdown(header, rows)


# --- Nodes ------------------------------------------------------------------------------------------------------


def scale(folder: Path, counts: Sequence[int], timeout: float) -> list[dict[str, float]]:
    """Time the parts of the analysis on graphs of growing size; a graph that takes too long ends the series."""
    records: list[dict[str, float]] = []
    for count in counts:
        path = folder / f"chain_{count}.onnx"
        write_chain(path, count)
        try:
            done = subprocess.run(_task("scale", path), capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            print(f"{count} nodes: not done after {timeout:g} s", file=sys.stderr)
            break
        if done.returncode:
            raise RuntimeError(f"{count} nodes: {done.stderr.strip()[-2000:]}")
        records.append({"nodes": count, **json.loads(done.stdout)})
    return records


def nodes_table(records: Sequence[dict[str, float]]) -> str:
    """Lay out the times; the last column is 1 throughout if the cost grows in proportion."""

    def per_node(record: dict[str, float]) -> float:
        return 1000 * (record["load"] + record["sizes"] + record["dims"]) / record["nodes"]

    rows = [
        (
            f"{record['nodes']:,.0f}",
            *(f"{record[part]:.2f} s" for part in ("load", "sizes", "dims")),
            f"{record['load'] + record['sizes'] + record['dims']:.2f} s",
            f"{per_node(record):.3f} ms",
            f"{per_node(record) / per_node(records[0]):.2f}",
            *(f"{record[part]:.2f} s" for part in ("inspect", "widen")),
        )
        for record in records
    ]
    header = ("nodes", "load", "sizes", "dims", "total", "per node", "per node / first", "inspect()", "widen()")
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a markdown table; all columns but the first are numbers."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))


# --- Command line -----------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure time and memory, side by side.")
    parser.add_argument("--gigabytes", metavar="GB", type=float, default=1.0, help="weights (default: %(default)g)")
    parser.add_argument("--nodes", metavar="N", nargs="*", type=int, default=list(NODES), help="sizes of the graphs")
    parser.add_argument("--repeat", metavar="N", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--timeout", metavar="S", type=float, default=300.0, help="for each graph (default: 300)")
    parser.add_argument("--quick", action="store_true", help="0.1 GB, and graphs of up to 5 000 nodes")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="where to put temporary files (4 x GB)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.gigabytes = min(options.gigabytes, 0.1)
        options.nodes = [count for count in options.nodes if count <= 5_000]
    if options.repeat < 1 or options.gigabytes < 0 or any(count < 4 for count in options.nodes):
        parser.error("--repeat, --gigabytes and --nodes must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    if options.task:
        _TASKS[options.task[0]](*options.task[1:])
        return
    figures: dict[str, Any] = {"gigabytes": options.gigabytes, "factor": FACTOR}
    with tempfile.TemporaryDirectory(prefix="benchmark.", dir=options.folder) as folder:
        if options.gigabytes:
            costs = compare(Path(folder), int(options.gigabytes * 1e9), options.repeat)
            figures["weights"] = {name: asdict(cost) for name, cost in costs.items()}
            print(f"Widening {options.gigabytes:g} GB by {FACTOR:g}, median of {options.repeat}:\n")
            print(weights_table(costs), flush=True)
        if options.nodes:
            figures["nodes"] = scale(Path(folder), options.nodes, options.timeout)
            print(f"\nFinding dims:\n\n{nodes_table(figures['nodes'])}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
