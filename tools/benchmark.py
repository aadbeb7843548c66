"""How fast, in how much memory: this package beside what one would compare it with, on one machine in one run.

*Weights*: widening a large model with external data, with and without verification, beside loading and saving the
result with onnx and with onnx-ir, and beside copying its files. *Classes*: a Llama and a ResNet-50 widened beside what
every tool pays that works on PyTorch's classes: load the teacher, make the larger class, save it (needs the extra
`torch`, transformers and torchvision). *Nodes*: how the time to find the dims grows with a graph, for residual blocks
and for chains of Concat. *Start*: what the command line takes before it works.

Wall times of a shared machine are noisy. Processor times, peaks and the ratios of medians are less so: contestants take
turns. Wall times include the time until what was written is on the disk.

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


def write_dense(path: Path, count: int) -> None:
    """Write a graph of about so many nodes in which each Conv reads all results before it, as in DenseNet."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, rng.random(shape, np.float32).tobytes(), raw=True)

    layers = 24  # of a block, as in the largest published ones; behind it a transition
    weights, nodes, name, width = (
        [weight("first", 8, 3, 1, 1)],
        [helper.make_node("Conv", ["x", "first"], ["x0"])],
        "x0",
        8,
    )
    for k in range(count // 3):
        if k % layers == layers - 1:
            weights.append(weight(f"t{k}", 8, width, 1, 1))
            nodes.append(helper.make_node("Conv", [name, f"t{k}"], [f"x{k + 1}"], name=f"transition{k}"))
            name, width = f"x{k + 1}", 8
            continue
        weights.append(weight(f"w{k}", 4, width, 1, 1))
        nodes += [
            helper.make_node("Conv", [name, f"w{k}"], [f"c{k}"], name=f"layer{k}/conv"),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"layer{k}/relu"),
            helper.make_node("Concat", [name, f"r{k}"], [f"x{k + 1}"], name=f"layer{k}/concat", axis=1),
        ]
        name, width = f"x{k + 1}", width + 4
    weights.append(weight("last", 4, width, 1, 1))
    nodes.append(helper.make_node("Conv", [name, "last"], ["y"]))
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


def task_onnx(source: str, target: str) -> None:
    """Load and save with onnx."""
    onnx.save(onnx.load(source), target, save_as_external_data=True, location=f"{Path(target).name}.data")


def task_onnx_ir(source: str, target: str) -> None:
    """Load and save with onnx-ir."""
    import onnx_ir

    onnx_ir.save(onnx_ir.load(source), target, external_data=f"{Path(target).name}.data")


def _llama(factor: int) -> Any:
    """Return a Llama of 134 M parameters, or one of twice the width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, width, inner = 8 * factor, 768 * factor, 2048 * factor
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=12,
                    num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False, use_cache=False)
    ).eval()  # fmt: skip


def _resnet(factor: int) -> Any:
    """Return a ResNet-50, or a wide one."""
    from torchvision.models import resnet50, wide_resnet50_2

    return (wide_resnet50_2 if factor == 2 else resnet50)().eval()


CLASSES: dict[str, tuple[Callable[[int], Any], Callable[[], Any], list[str]]] = {
    "Llama": (
        _llama,
        lambda: __import__("torch").ones(1, 8, dtype=__import__("torch").int64),
        ["--factor", "2"],
    ),
    "ResNet-50": (
        _resnet,
        lambda: __import__("torch").randn(1, 3, 224, 224),
        ["--set", "layer*.conv1=2x", "--set", "layer*.conv2=2x"],
    ),
}
"""Classes: what makes one at a width, an input, and how the command line is asked for the larger one."""


def task_export(name: str, target: str, state: str) -> None:
    """Export a class with random weights, and save these."""
    import torch

    make, example, _ = CLASSES[name]
    torch.manual_seed(0)
    module = make(1)
    torch.save(module.state_dict(), state)
    torch.onnx.export(module, (example(),), target, dynamo=True, external_data=True)


def task_class(name: str, state: str, target: str) -> None:
    """Load a teacher's weights into its class, make the larger class, and save that: no weight is carried over."""
    import torch

    make = CLASSES[name][0]
    make(1).load_state_dict(torch.load(state))
    torch.save(make(2).state_dict(), target)


def task_scale(source: str) -> None:
    """Find the dims, then widen, and print what each part took of a processor, as JSON."""
    from onnx_net2net.analysis import inference
    from onnx_net2net.analysis.groups import inspect, paused_gc
    from onnx_net2net.graph import sizes
    from onnx_net2net.model.model import load
    from onnx_net2net.operations.widen.widen import widen

    parts: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                parts[name] = time.process_time() - start

        return call

    sizes.infer_sizes = timed("sizes", sizes.infer_sizes)
    model = timed("load", load)(source)
    with paused_gc():  # as all who infer do
        timed("sizes and dims", inference.infer)(model)
    parts["dims"] = parts.pop("sizes and dims") - parts["sizes"]
    shown = dict(parts)
    timed("inspect", inspect)(model)
    timed("widen", widen)(model, factor=2)
    print(json.dumps({**shown, "inspect": parts["inspect"], "widen": parts["widen"]}))


_TASKS: dict[str, Callable[..., None]] = {
    "onnx": task_onnx,
    "onnx_ir": task_onnx_ir,
    "export": task_export,
    "class": task_class,
    "scale": task_scale,
}


def _task(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, os.path.abspath(__file__), "--task", name, *map(str, arguments)]


# --- Measurement ------------------------------------------------------------------------------------------------


def measure(command: Sequence[str], output: Path | None = None) -> Cost:
    """Run a command to its end, and wait until what it has put into a folder is on the disk.

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
        for path in output.iterdir() if output else ():
            with path.open("rb") as file:
                os.fsync(file.fileno())
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


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "onnx_net2net", *map(str, arguments)]


def _widen(teacher: Path, target: Path, *options: str) -> list[str]:
    return _command("widen", teacher, "-o", target, *options)


def one_file(model: Path) -> Path:
    """Return a model beside one with external data that has its data in itself; it is written the first time."""
    whole = model.with_name("whole.onnx")
    if not whole.exists():
        onnx.save(onnx.load(model), whole)
    return whole


def _contestants(teacher: Path, student: Path, target: Path) -> dict[str, list[str]]:
    """Return what is compared: commands that write to `target`."""
    files = [str(path) for path in sorted(student.parent.iterdir())]
    found = {
        "onnx: load + save of the result": _task("onnx", student, target),
        "widen --no-verify": _widen(teacher, target, "--factor", str(FACTOR), "--no-verify"),
        "widen, verified": _widen(teacher, target, "--factor", str(FACTOR)),
        "the same, all in one file": _widen(one_file(teacher), target, "--factor", str(FACTOR)),
        "cp of the result": ["cp", *files, str(target.parent)],
        "inspect": _command("inspect", teacher),
    }
    if importlib.util.find_spec("onnx_ir"):
        found["onnx-ir: load + save of the result"] = _task("onnx_ir", student, target)
    return found


def race(contestants: dict[str, list[str]], output: Path, repeat: int) -> dict[str, Cost]:
    """Run contestants in turn, several times; returns the median of each."""
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for _ in range(repeat):
        for name, command in contestants.items():
            output.mkdir()
            os.sync()  # so that nobody pays for what an earlier one has left to write
            costs[name].append(measure(command, output))
            shutil.rmtree(output)
    return {name: median(found) for name, found in costs.items()}


def copy_bandwidth(nbytes: int = 1 << 28) -> float:
    """Return how many bytes a second one thread copies in memory."""
    source, target = np.ones(nbytes, np.uint8), np.empty(nbytes, np.uint8)
    target[:] = source
    seconds = []
    for _ in range(5):
        start = time.process_time()
        target[:] = source
        seconds.append(time.process_time() - start)
    return nbytes / statistics.median(seconds)


def compare(folder: Path, nbytes: int, repeat: int) -> dict[str, Cost]:
    """Run all contestants in turn, several times; returns the median of each."""
    teacher, student, output = folder / "teacher" / "model.onnx", folder / "student" / "model.onnx", folder / "out"
    teacher.parent.mkdir()
    student.parent.mkdir()
    write_large(teacher, nbytes, WIDTH if nbytes >= 5e8 else WIDTH // 4)
    measure(_widen(teacher, student, "--factor", str(FACTOR), "--no-verify"))
    costs = race(_contestants(teacher, student, output / "model.onnx"), output, repeat)
    shutil.rmtree(teacher.parent)
    shutil.rmtree(student.parent)
    return costs


def compare_class(folder: Path, name: str, repeat: int) -> dict[str, Cost]:
    """Run the contestants of a class in turn."""
    output, teacher, state = folder / "out", folder / name / "model.onnx", folder / name / "teacher.pt"
    teacher.parent.mkdir()
    measure(_task("export", name, teacher, state))
    options = CLASSES[name][2]
    contestants = {
        "PyTorch: load, make the larger class, save": _task("class", name, state, output / "student.pt"),
        "widen --no-verify": _widen(teacher, output / "model.onnx", *options, "--no-verify"),
        "widen, verified": _widen(teacher, output / "model.onnx", *options),
    }
    costs = race(contestants, output, repeat)
    shutil.rmtree(teacher.parent)
    return costs


def weights_table(costs: dict[str, Cost]) -> str:
    """Lay out the comparison with the first contestant."""
    first = next(iter(costs.values()))
    rows = []
    for name, cost in costs.items():
        cpu = (f"{cost.cpu_seconds:.2f} s", f"{cost.cpu_seconds / first.cpu_seconds:.2f}")
        wall = (f"{cost.wall_seconds:.2f} s", f"{cost.wall_seconds / first.wall_seconds:.2f}")
        rows.append((name, *cpu, *wall, f"{cost.peak_bytes / 1e9:.3f} GB"))
    return markdown(("", "processor", "beside the first", "wall", "beside", "peak anonymous memory"), rows)


def start_table(folder: Path, repeat: int) -> str:
    """Measure and lay out what starting takes."""
    path = folder / "small.onnx"
    write_chain(path, 40)
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import numpy, onnx": [sys.executable, "-c", "import numpy, onnx"],
        "onnx-net2net --help": _command("--help"),
        "onnx-net2net inspect, 40 nodes": _command("inspect", path),
    }
    costs = {name: median([measure(command) for _ in range(repeat)]) for name, command in commands.items()}
    rows = [(name, f"{cost.cpu_seconds:.2f} s", f"{cost.wall_seconds:.2f} s") for name, cost in costs.items()]
    return markdown(("", "processor", "wall"), rows)


# --- Nodes ------------------------------------------------------------------------------------------------------


def scale(
    folder: Path, counts: Sequence[int], timeout: float, write: Callable[[Path, int], None]
) -> list[dict[str, float]]:
    """Time the parts of the analysis on graphs of growing size; a graph that takes too long ends the series."""
    records: list[dict[str, float]] = []
    for count in counts:
        path = folder / f"{write.__name__}_{count}.onnx"
        write(path, count)
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
    parser.add_argument("--classes", nargs="*", choices=list(CLASSES), default=[], help="classes to widen, of PyTorch")
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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    figures: dict[str, Any] = {"gigabytes": options.gigabytes, "factor": FACTOR}
    with tempfile.TemporaryDirectory(prefix="benchmark.", dir=options.folder) as folder:
        if options.gigabytes:
            costs = compare(Path(folder), int(options.gigabytes * 1e9), options.repeat)
            figures["weights"] = {name: asdict(cost) for name, cost in costs.items()}
            figures["copy_bandwidth"] = copy_bandwidth()
            print(f"One thread copies {figures['copy_bandwidth'] / 1e9:.1f} GB/s in memory.\n")
            print(f"Widening {options.gigabytes:g} GB by {FACTOR:g}, median of {options.repeat}:\n")
            print(weights_table(costs), flush=True)
        for name in options.classes:
            costs = compare_class(Path(folder), name, options.repeat)
            figures[name] = {contestant: asdict(cost) for contestant, cost in costs.items()}
            print(f"\n{name} widened by 2:\n\n{weights_table(costs)}", flush=True)
        for what, write in (("residual blocks", write_chain), ("chains of Concat", write_dense)):
            if options.nodes:
                figures[what] = scale(Path(folder), options.nodes, options.timeout, write)
                print(f"\nFinding dims of {what}, processor time:\n\n{nodes_table(figures[what])}", flush=True)
        print(f"\nStarting:\n\n{start_table(Path(folder), max(options.repeat, 3))}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
