"""Widen and verify random graphs of a fuzzer that nobody here wrote: NNSmith, from the package index.

NNSmith generates valid graphs of random operators and exports them through PyTorch. It lives in an environment of its
own, which this script only calls:

    python -m venv nnsmith && nnsmith/bin/pip install nnsmith torch onnx onnxruntime
    python tools/fuzz.py --nnsmith nnsmith/bin/python --out failing

A graph of NNSmith has few weights and interface dims on nearly every axis, so that most of them have nothing to grow.
Each therefore also runs between layers: its inputs are made by matrices and 1x1 convolutions, one for each axis, and
such layers read its outputs, so that all of its axes are hidden ones. Every graph has to be exact at every factor, or
say why nothing grows; the exit code is 1 if one is wrong, does not run or crashes. Chains of steps and of tangents make
anything of a rounding error, and an infinity that copies share may be one less another: a student that differs, but is
exact in double precision, counts as rounding and is listed apart.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from doubles import FLOATS, is_exact_in_doubles
from onnx import TensorProto, helper, numpy_helper
from run_corpus import FAILURES, Job, Result, findings, markdown, run_all

NEW_INPUT, NEW_OUTPUT = 5, 3
"""Sizes of the axes that matrices put in the place of those of the graph."""

PATIENCE = 120.0
"""Seconds for a batch of graphs, after which the generator is started again behind it."""

BATCH = 10

MEMORY = 4 * 2**30
"""Bytes that the reference operators may take to run a graph in double precision."""

GENERATOR = r"""
import logging, pathlib, sys, warnings
import onnx, onnxruntime, torch
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
export = torch.onnx.export
torch.onnx.export = lambda *a, **k: export(*a, **{**k, "dynamo": False})
onnx._serialize = onnx.ModelProto.SerializeToString
from nnsmith.backends.factory import BackendFactory
from nnsmith.graph_gen import model_gen
from nnsmith.materialize import Model
from nnsmith.narrow_spec import auto_opset

kind = Model.init("onnx")
kind.add_seed_setter()
operators = auto_opset(kind, BackendFactory.init("onnxruntime", target="cpu", optmax=True))
first, last, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
for seed in range(first, last):
    try:
        made = model_gen(
            opset=operators, method="symbolic-cinit", seed=seed, max_nodes=4 + seed % 13, timeout_ms=10000,
            max_elem_per_tensor=4096,
            rank_choices=[2, 3, 4] if seed % 3 else None, dtype_choices=["f32", "i64", "bool"] if seed % 2 else None,
        )
        model = kind.from_gir(made.make_concrete())
        model.refine_weights()
        data = model.onnx_model.SerializeToString()
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # it has not every kernel
        (folder / f"{seed:06}.onnx").write_bytes(data)
    except Exception as error:
        print(f"seed {seed}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
"""
"""Runs where NNSmith is installed: writes one model for each seed of a range."""


def generate(python: str, number: int, seed: int, folder: Path) -> list[Path]:
    """Have NNSmith write graphs until there are enough, or it makes no more.

    Args:
        python: The interpreter of the environment that it is installed in.
        number: How many graphs.
        seed: The first of their seeds.
        folder: Where to.

    Returns:
        The files.

    Raises:
        RuntimeError: Several batches in a row had no graph.
    """
    empty = 0
    while len(made := sorted(folder.glob("*.onnx"))) < number:
        arguments = [python, "-c", GENERATOR, str(seed), str(seed + BATCH), str(folder)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
            trouble = done.stderr[-2000:]
        except subprocess.TimeoutExpired:
            trouble = "timeout"
        empty = 0 if len(list(folder.glob("*.onnx"))) > len(made) else empty + 1
        if empty > 3:
            raise RuntimeError(f"NNSmith makes no graphs: {trouble}")
        seed += BATCH
    return made[:number]


def between_layers(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Make the inputs of a graph by layers, and read its outputs by layers, so that its axes are hidden.

    Args:
        model: The graph.
        seed: Of the weights and of what stands before the graph.
    """
    layers = _Layers(np.random.default_rng(seed))
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [layers.before(value) if value.name not in held else value for value in model.graph.input]
    outputs = [layers.behind(value) for value in model.graph.output]
    nodes = [*layers.first, *model.graph.node, *layers.last]
    graph = helper.make_graph(nodes, "between", inputs, outputs, [*model.graph.initializer, *layers.weights])
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made)
    return made


class _Layers:
    """The layers around a graph."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.first: list[onnx.NodeProto] = []
        self.last: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def before(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """Compute an input of the graph from one of the same rank, which it returns."""
        kind, shape = _type(value)
        if not shape:
            return value
        data = kind if kind in FLOATS else TensorProto.FLOAT
        name, made = f"{value.name}_given", list(shape)
        tensor = name
        for axis in _axes(data, len(shape)):
            tensor = self._layer(self.first, tensor, data, axis, len(shape), NEW_INPUT, shape[axis])
            made[axis] = NEW_INPUT
        if kind in FLOATS:
            act = self._rng.choice(["Sigmoid", "Identity"])  # some operators are defined on a part of the numbers only
            self._node(self.first, act, [tensor], value.name)
        else:
            limit = self._weight(f"{name}_limit", np.array(0.3), data)
            self._node(self.first, "Greater" if kind == TensorProto.BOOL else "Div", [tensor, limit], f"{name}_cut")
            self._node(self.first, "Cast", [f"{name}_cut"], value.name, to=kind)
        return helper.make_tensor_value_info(name, data, made)

    def behind(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """Read an output of the graph, and return what is read."""
        kind, shape = _type(value)
        if not shape:
            return value
        tensor, made = value.name, list(shape)
        if kind not in FLOATS:
            kind = TensorProto.FLOAT
            tensor = self._node(self.last, "Cast", [value.name], f"{value.name}_float", to=kind)
        for axis in _axes(kind, len(shape)):
            tensor = self._layer(self.last, tensor, kind, axis, len(shape), shape[axis], NEW_OUTPUT)
            made[axis] = NEW_OUTPUT
        return helper.make_tensor_value_info(tensor, kind, made)

    def _layer(
        self, nodes: list[onnx.NodeProto], tensor: str, kind: int, axis: int, rank: int, old: int, new: int
    ) -> str:
        """Map one axis from a size to another; returns the result's name."""
        result = f"{tensor}_{axis}"
        matrix = self._rng.standard_normal((old, new)) * old**-0.5
        if axis == rank - 1:
            return self._node(nodes, "MatMul", [tensor, self._weight(f"{result}_w", matrix, kind)], result)
        if axis == rank - 2:
            return self._node(nodes, "MatMul", [self._weight(f"{result}_w", matrix.T, kind), tensor], result)
        if _is_image(kind, rank) and axis == 1:
            weight = self._weight(f"{result}_w", matrix.T[:, :, None, None], kind)
            return self._node(nodes, "Conv", [tensor, weight], result)
        letters = "abcdefgh"[:rank]
        equation = f"{letters},{letters[axis]}z->{letters.replace(letters[axis], 'z')}"
        weight = self._weight(f"{result}_w", matrix, kind)
        return self._node(nodes, "Einsum", [tensor, weight], result, equation=equation)

    def _weight(self, name: str, values: np.ndarray, kind: int) -> str:
        array = np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(kind)).reshape(values.shape)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, nodes: list[onnx.NodeProto], kind: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], f"{output}_{kind}", **attrs))
        return output


def _axes(kind: int, rank: int) -> Iterator[int]:
    """Yield the axes that get a layer; onnxruntime has no Einsum of halves."""
    for axis in range(rank):
        if axis >= rank - 2 or kind != TensorProto.FLOAT16:
            yield axis


def _is_image(kind: int, rank: int) -> bool:
    return rank == 4 and kind == TensorProto.FLOAT


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)


def _is_exact(path: str, factor: float) -> bool:
    return is_exact_in_doubles(onnx.load(path), factor=factor)


def adjudicated(result: Result) -> Result:
    """Return a result; what differs in single precision only is called rounding."""
    if result.status == "wrong":
        spawn = multiprocessing.get_context("spawn")
        limits = resource.RLIMIT_DATA, (MEMORY, MEMORY)
        # The reference operators do not run everything, and some of it not in a process that others depend on.
        with spawn.Pool(1, resource.setrlimit, limits) as pool, contextlib.suppress(Exception):
            if pool.apply_async(_is_exact, (result.path, result.factor)).get(PATIENCE):
                return replace(result, status="rounding")
    return result


def table(results: Sequence[Result]) -> str:
    """Count what became of the graphs, by kind and factor."""
    statuses = ["exact", "rounding", "refused", "bad input", "no teacher", *FAILURES]
    rows = []
    for family, factor in sorted({(result.family, result.factor) for result in results}):
        here = [result for result in results if (result.family, result.factor) == (family, factor)]
        counts = Counter(result.status for result in here)
        whole = sum(result.status == "exact" and not result.fixed for result in here)
        rows.append([family, f"{factor:g}", str(len(here)), *(str(counts[s]) for s in statuses), str(whole)])
    return markdown(["graphs", "factor", "number", *statuses, "exact and all grew"], rows, texts=1)


def operators(paths: Iterable[Path]) -> str:
    """List the operators that occur, with the number of graphs that have them."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update({node.op_type for node in onnx.load(path).graph.node})
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Widen and verify random graphs made by NNSmith.")
    parser.add_argument("--nnsmith", metavar="PYTHON", help="interpreter of the environment that has nnsmith")
    parser.add_argument("--models", metavar="FOLDER", type=Path, help="graphs made before, instead of new ones")
    parser.add_argument("--graphs", metavar="N", type=int, default=300, help="default: 300")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first graph (default: 0)")
    parser.add_argument("--factors", metavar="F", nargs="+", type=float, default=[1.37, 2.0], help="default: 1.37 2")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--timeout", metavar="S", type=float, default=60.0, help="per graph and factor (default: 60)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="failing graphs are copied there")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="write the graphs there, for --models")
    options = parser.parse_args(arguments)
    if (options.nnsmith is None) == (options.models is None):
        parser.error("give --nnsmith or --models")
    if options.graphs < 1 or options.jobs < 1 or options.timeout <= 0:
        parser.error("--graphs, --jobs and --timeout must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Make graphs, widen and verify them; returns the exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and their files go, too
    with tempfile.TemporaryDirectory(prefix="fuzz.") as temporary:
        bare, between = Path(temporary, "bare"), Path(temporary, "between layers")
        bare.mkdir()
        between.mkdir()
        start = time.perf_counter()
        if options.models:
            paths = sorted(options.models.glob("*.onnx"))[: options.graphs]
        else:
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
            paths = generate(options.nnsmith, options.graphs, options.seed, options.keep or bare)
        print(f"{len(paths)} graphs in {time.perf_counter() - start:.0f} s; operators: {operators(paths)}\n")
        jobs: list[Job] = []
        for number, path in enumerate(paths):
            wrapped = between / path.name
            onnx.save(between_layers(onnx.load(path), number), wrapped)
            for factor in options.factors:
                jobs += [Job(path, "bare", factor), Job(wrapped, "between layers", factor)]
        results: list[Result] = []
        run_all(jobs, options.jobs, results.append, options.timeout)
        results = [adjudicated(result) for result in results]
        failed = [result for result in results if result.status in FAILURES]
        unsaid = [result for result in results if result.status == "refused" and not result.error]
        print(table(results))
        print(f"\n{len(failed)} failures; {len(unsaid)} refusals without a reason", end="\n\n")
        said = findings([result for result in results if result.status not in ("exact", "rounding")])
        print(*(f"- {line}" for line in said), sep="\n")
        rounding = [result for result in results if result.status == "rounding"]
        print(f"\n{len(rounding)} students are exact in double precision, but not as they are:", end="\n\n")
        print(*(f"- {Path(r.path).name} ({r.factor:g}x): {r.error}" for r in rounding), sep="\n")
        if options.out:
            for result in failed + unsaid:
                options.out.mkdir(parents=True, exist_ok=True)
                name = f"{result.family.replace(' ', '_')}_{Path(result.path).name}"
                shutil.copyfile(result.path, options.out / name)
    return 1 if failed or unsaid else 0


if __name__ == "__main__":
    sys.exit(main())
