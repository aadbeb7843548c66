"""Widen (or deepen, or fill) and verify every model of some folders, and tell what went wrong.

Each model is widened and verified in a worker process, so that a crash, a hang or a leak costs one line of the
report and not the run. Packed graphs (``.onnx.xz``) may come without their weights: a tensor whose ``doc_string`` is
``random:mean,std,min,max`` gets values of that distribution, the same in every run.

    python tools/run_corpus.py corpus --json results.jsonl
    python tools/run_corpus.py corpus --sample 40 --exit-code
    python tools/run_corpus.py corpus --sample 40 --transfer same wider --factors 1.5
    python tools/run_corpus.py corpus/moe --set experts=2x experts=+1 --how split topk lift
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import itertools
import json
import lzma
import math
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np
import onnx
from onnx import helper
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:  # the workers import the package, not this process
    from onnx_net2net.model.model import Model

SUFFIXES = (".onnx", ".onnx.xz")
ENOUGH = 0.9
"""Share of the weights that should lie on an axis that grew."""

FAILURES = ("wrong", "broken", "crash", "timeout")
"""What ``--exit-code`` reports; the other ways not to be exact are verdicts on the model or the request."""

TRANSFERS = {
    "same": "to the same network",
    "wider": "to a wider one",
    "layers": "to one with more layers",
    "residual": "to one with residual layers in between",
    "blocks": "to one with its blocks repeated",
    "narrower": "from a wider one",
}
"""Pairs of teacher and target that are made of one model; the target's weights are drawn anew."""

_ATTENTION_FREE = {"LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention"}
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Job:
    """One model to widen by a factor (norms that admit multiples only are filled up, or kept), or to deepen.

    Deeper by "each" is: behind one layer after another, in a random order and by all that is offered there in turn, as
    long as there is time (`seconds`). To narrow is to widen and to narrow again. To transfer is to fill one network
    from another, of which the model is one, and the other is made of it (`TRANSFERS`). With a `size` (``experts=2x``)
    only the dims of that name grow, `how` as of `widen`.
    """

    path: Path
    family: str
    factor: float = 0.0
    keep_norms: bool = False
    deeper: Literal["", "identity", "residual", "each"] = ""
    seconds: float = 0.0
    narrow: bool = False
    transfer: str = ""
    size: str = ""
    how: str = "split"

    @property
    def way(self) -> str:
        """What is done, for tables."""
        if self.transfer:
            return f"transfer {TRANSFERS[self.transfer]}{f' ({self.factor:g}x)' if self.factor else ''}"
        if self.deeper:
            return f"deeper ({self.deeper})"
        if self.narrow:
            return f"{self.factor:g}x and back"
        if self.size:
            return f"{self.size} {self.how}"
        return f"{self.factor:g}x{' norms kept' if self.keep_norms else ''}"


@dataclass
class Result:
    """What became of one job; all but the first fields stay empty as far as it did not get.

    Attributes:
        path: The model.
        family: The folder that it is in.
        exporter: What its file name says of the exporter.
        factor: The width multiplier, 0 for deeper ones.
        way: What was done.
        status: ``exact``, ``wrong`` (another function), ``broken`` (the student does not run), ``crash``, ``timeout``,
            ``refused``, ``bad input`` or ``no teacher`` (it does not run itself). Of a transfer also ``partial`` (not
            exact, and it says why) and ``no pair`` (there is no such target without new nodes).
        error: One line that says why it is not exact.
        traceback: Of a crash.
        nodes: Number of nodes of the teacher.
        covered: Share of the weight elements that lie on an axis that grew, or that were filled.
        grown: Number of dims that grew, of layers behind which something was inserted, or of tensors from the teacher.
        kept: Number of growable dims that stayed: no size near the wanted one is exact, or another factor of the
            same axis grew; or of layers for which there was no time.
        fixed: Elements on dims that cannot grow, by reason, the largest first.
        stuck: Of a model that grew little: elements that have no dim that can grow, by the reasons for that.
        left: Of a model that was widened and narrowed: parameters, in parts of the teacher's.
        ratio: The largest of the outputs' errors as multiples of the teacher's own noise.
        diverges_at: The first tensor that differs.
        widen_seconds: Time to load, analyse and rewrite.
        verify_seconds: Time to compute the weights and compare.
    """

    path: str
    family: str
    exporter: str
    factor: float
    way: str = ""
    status: str = "crash"
    error: str = ""
    traceback: str = ""
    nodes: int = 0
    covered: float | None = None
    grown: int = 0
    kept: int = 0
    fixed: dict[str, int] = field(default_factory=dict)
    stuck: dict[str, int] = field(default_factory=dict)
    left: float | None = None
    ratio: float | None = None
    diverges_at: str | None = None
    widen_seconds: float | None = None
    verify_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Time for all of it."""
        return (self.widen_seconds or 0.0) + (self.verify_seconds or 0.0)


# --- Models -----------------------------------------------------------------------------------------------------


def read_model(path: Path) -> onnx.ModelProto | Path:
    """Return what `onnx_net2net.load` takes: a plain file as it is, a packed one unpacked and with weights."""
    if path.suffix != ".xz":
        return path
    model = onnx.ModelProto.FromString(lzma.decompress(path.read_bytes()))
    for tensor in _tensors(model.graph):
        if tensor.doc_string.startswith("random:"):
            _fill(tensor)
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph and of the graphs in it; those in attributes get their node's name."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.name = attribute.t.name or node.output[0]
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _fill(tensor: onnx.TensorProto) -> None:
    """Draw values from the distribution that the tensor's text describes, seeded by its name."""
    mean, std, low, high = map(float, tensor.doc_string.removeprefix("random:").split(","))
    rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    shape = tuple(tensor.dims)
    if low >= 0:  # variances and scales stay positive
        most = max(high, 1.5 * mean) if high < 4 * mean else 1.5 * mean
        values = rng.uniform(max(low, 0.5 * mean), most, shape)
    else:
        values = np.clip(rng.normal(mean, std or 0.02, shape), low, high)
    tensor.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()
    tensor.doc_string = ""


def is_cnn(path: Path) -> bool:
    """Tell whether a model has Conv, Gemm or MatMul layers, and neither attention nor recurrence.

    Attention is a MatMul of two tensors that both depend on the inputs, or any node of ``com.microsoft``.
    """
    try:
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        graph = onnx.ModelProto.FromString(data).graph
    except Exception:  # whoever opens it later says what is wrong with it
        return False
    constant = {tensor.name for tensor in graph.initializer} | {""}
    layers = False
    for node in graph.node:
        if node.domain == "com.microsoft" or node.op_type in _ATTENTION_FREE:
            return False
        known = [name in constant for name in node.input]
        if node.op_type == "MatMul" and not any(known):
            return False
        layers |= node.op_type in _LAYERS
        if all(known) and not any(attribute.HasField("g") for attribute in node.attribute):
            constant.update(node.output)
    return layers


def exporter(path: Path) -> str:
    """Guess from a file's name what exported it."""
    name = path.name.split(".onnx")[0]
    if re.search(r"_ts\d*(_|$)", name):
        return "TorchScript"
    return "dynamo" if re.search(r"_dyn\d*(_|$)", name) else "other"


def find_models(folders: Sequence[Path], patterns: Sequence[str], cnn: bool, sample: int | None) -> list[Path]:
    """List the models in some folders, or a sample of them, always the same."""
    found = {path for folder in folders for path in _models_in(folder)}
    chosen = [p for p in sorted(found) if not patterns or any(_matches(p, pattern) for pattern in patterns)]
    if cnn:
        chosen = [path for path in chosen if is_cnn(path)]
    return chosen if sample is None else spread(chosen, sample)


def _models_in(folder: Path) -> Iterator[Path]:
    candidates = [folder] if folder.is_file() else folder.rglob("*")
    return (path for path in candidates if path.name.endswith(SUFFIXES) and path.is_file())


def _matches(path: Path, pattern: str) -> bool:
    return fnmatch.fnmatch(str(path), pattern) or fnmatch.fnmatch(path.name, pattern)


def spread(paths: Iterable[Path], number: int) -> list[Path]:
    """Choose some paths, from each folder in turn, by a hash of their names."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(paths, key=lambda path: (zlib.crc32(path.name.encode()), path)):
        folders.setdefault(path.parent, []).append(path)
    rounds = itertools.zip_longest(*(folders[folder] for folder in sorted(folders)))
    turns = (path for path in itertools.chain.from_iterable(rounds) if path is not None)
    return sorted(itertools.islice(turns, number))


# --- One job ----------------------------------------------------------------------------------------------------


def run_job(job: Job) -> Result:
    """Widen and verify one model; nothing that Python can catch escapes."""
    result = _result(job)
    try:
        (_fill_and_verify if job.transfer else _grow_and_verify)(job, result)
    except Exception as error:
        result.status = _status(error)
        result.error = f"{result.error}{_one_line(error)}"
        if result.status == "crash":
            result.traceback = traceback.format_exc()
            result.error = f"{type(error).__name__}: {result.error} ({_place(error)})"
    return result


def _grow_and_verify(job: Job, result: Result) -> None:
    from onnx_net2net.operations.verify import verify

    deepen = _deepen_each if job.deeper == "each" else _deepen
    grow = _widen_and_narrow if job.narrow else deepen if job.deeper else _widen
    for teacher, student in grow(job, result, read_model(job.path)):
        start = time.perf_counter()
        try:
            verification = verify(teacher, student)
        finally:
            result.verify_seconds = (result.verify_seconds or 0.0) + time.perf_counter() - start
        ratios = [report.ratio for report in verification.outputs if math.isfinite(report.ratio)]
        result.ratio = max((ratio for ratio in (result.ratio, *ratios) if ratio is not None), default=None)
        result.status = "exact" if verification.equivalent else "wrong"
        if not verification.equivalent:
            result.error = f"{result.error}{verification}"
            result.diverges_at = verification.diverges_at
            return


def _deepen_each(job: Job, result: Result, source: onnx.ModelProto | Path) -> Iterator[tuple[Model, Model]]:
    from onnx_net2net.errors import RefusedError
    from onnx_net2net.model.model import load
    from onnx_net2net.operations.deepen.deepen import deepen, sites

    start = time.perf_counter()
    teacher = load(source)
    found = [site for site in sites(teacher) if site.ways]
    if not found:
        raise RefusedError("nothing can be inserted")
    random.Random(0).shuffle(found)
    result.nodes, result.kept = len(teacher.proto.graph.node), len(found)
    for number, site in enumerate(found):
        if number and time.perf_counter() - start > job.seconds:
            return
        way = site.ways[number % len(site.ways)]
        result.error = f"{way} behind {site.name}: "  # as long as it is not known to be exact
        yield teacher, deepen(teacher, after=[site.name], way=way).student
        result.error = ""
        result.grown, result.kept = result.grown + 1, result.kept - 1
        result.widen_seconds = time.perf_counter() - start - (result.verify_seconds or 0.0)


def _deepen(job: Job, result: Result, source: onnx.ModelProto | Path) -> Iterator[tuple[Model, Model]]:
    from onnx_net2net.operations.deepen.deepen import deepen

    start = time.perf_counter()
    deepening = deepen(source, all=True, way="residual" if job.deeper == "residual" else None)
    result.widen_seconds = time.perf_counter() - start
    result.nodes = len(deepening.teacher.proto.graph.node)
    result.grown = len(deepening.insertions)
    yield deepening.teacher, deepening.student


def _widen(job: Job, result: Result, source: onnx.ModelProto | Path) -> Iterator[tuple[Model, Model]]:
    from onnx_net2net.operations.widen.widen import widen

    start = time.perf_counter()
    if job.size:
        pattern, _, size = job.size.partition("=")
        widening = widen(source, sizes={pattern: size}, how=job.how)
    else:
        widening = widen(source, factor=job.factor, fill_norms=False if job.keep_norms else None)
    result.widen_seconds = time.perf_counter() - start
    result.nodes = len(widening.teacher.proto.graph.node)
    result.covered = widening.covered
    result.grown = sum(change.new != change.old for change in widening.changes)
    result.kept = len(widening.changes) - result.grown
    reasons: Counter[str] = Counter()
    for group in widening.fixed:
        reasons[group.reason or ""] += group.elements
    result.fixed = dict(reasons.most_common(5))
    if widening.covered < ENOUGH and not job.size:
        result.stuck = _stuck(widening.teacher)
    yield widening.teacher, widening.student


def _widen_and_narrow(job: Job, result: Result, source: onnx.ModelProto | Path) -> Iterator[tuple[Model, Model]]:
    from onnx_net2net.errors import RefusedError
    from onnx_net2net.operations.narrow.narrow import narrow

    ((teacher, student),) = _widen(job, result, source)
    start = time.perf_counter()
    with contextlib.suppress(RefusedError):  # nothing to remove
        student = narrow(student).student
    result.widen_seconds = (result.widen_seconds or 0.0) + time.perf_counter() - start
    result.left = student.parameters / teacher.parameters
    yield teacher, student


def _fill_and_verify(job: Job, result: Result) -> None:
    from onnx_net2net.errors import RefusedError
    from onnx_net2net.model.model import load
    from onnx_net2net.operations.transfer.transfer import proof, transfer

    model = load(read_model(job.path))
    result.nodes = len(model.proto.graph.node)
    try:
        teacher, target = _pair(job, model)
    except RefusedError as error:
        result.status, result.error = "no pair", _one_line(error)
        return
    made = time.perf_counter()
    filled = transfer(teacher, target, prove=False)
    result.covered = filled.filled
    result.grown = sum(source.origin == "teacher" for source in filled.sources)
    result.widen_seconds = time.perf_counter() - made
    result.error = "; ".join(map(str, filled.obstacles))
    verification, obstacles = proof(filled)
    result.verify_seconds = time.perf_counter() - made - result.widen_seconds
    new = "; ".join(map(str, obstacles[len(filled.obstacles) :]))
    if filled.obstacles:
        result.status = "broken" if new else "partial"  # only what cannot be compared is added to known obstacles
    else:
        result.status = "wrong" if new else "exact"
    if new:
        result.error = new
    if verification is not None:
        result.ratio = max((r.ratio for r in verification.outputs if math.isfinite(r.ratio)), default=None)
        result.diverges_at = verification.diverges_at


def _pair(job: Job, model: Model) -> tuple[Model, Model]:
    """Return a teacher and a target, of which one is the model."""
    from onnx_net2net.operations.deepen.deepen import deepen
    from onnx_net2net.operations.widen.widen import widen

    if job.transfer == "narrower":
        return widen(model, factor=job.factor).student, redrawn(model)
    if job.transfer == "wider":  # by what inserts no nodes, as the target's class would have none
        return model, redrawn(widen(model, factor=job.factor, framework="torch").student)
    if job.transfer == "blocks":
        return model, redrawn(deepen(model, depth=2).student)
    if job.transfer == "same":
        return model, redrawn(model)
    return model, redrawn(deepen(model, all=True, way="residual" if job.transfer == "residual" else None).student)


def redrawn(model: Model) -> Model:
    """Return a model with other weights: of the same signs and scale, so that variances stay positive.

    A value depends on the old one alone, so that ties stay ties in whatever layout and part of the file. Only where
    most of a tensor is zero (biases, inserted layers) zeros become something. Masks, sizes and single numbers are no
    weights, but for those that are learnt or measured: biases, slopes, gains, the scales of quantized tensors.
    """
    from onnx_net2net.model.protos import all_tensors, scopes
    from onnx_net2net.model.tensors import detach, set_inline

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    sizes, codes, learnt = set(), set(), set()
    for node in itertools.chain.from_iterable(scope.node for scope in scopes(proto)):
        if node.op_type in ("Resize", "Upsample", "OneHot"):
            sizes.update(node.input[1:])
        elif re.search("[Qq]uant|Integer|QLinear|QGemm", node.op_type):
            codes.update(node.input)
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "LayerNormalization", "PRelu"):
            learnt.update(node.input[1:])
        elif node.op_type in ("Add", "Mul", "Div"):  # by the names of parameters
            learnt.update(name for name in node.input if re.match(r"\w+\.", name))
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.name = attribute.t.name or next(iter(node.output), "")
    for tensor in all_tensors(proto):
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        is_float = kind.kind == "f"
        least = 1 if tensor.name in learnt or (is_float and tensor.name in codes) else 2
        if math.prod(tensor.dims) >= least and tensor.name not in sizes and (is_float or tensor.name in codes):
            values = np.asarray(model.tensor(tensor).numpy())
            drawn = _redraw(values, zlib.crc32(tensor.name.encode()))
            set_inline(tensor, drawn.astype(kind).tobytes())
    weights = dict(model.weights)
    detach(proto, weights)
    return replace(model, proto=proto, weights=weights, path=None)


def _redraw(values: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Return other values, between half the old ones and these."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    shrunk: np.ndarray[Any, Any] = values * (0.5 + ((bits * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) / 2**25)
    scale = float(np.abs(values).max(initial=0.0)) or 0.1
    if values.dtype.kind != "f" or scale > 1e4 or 2 * np.count_nonzero(values) >= values.size:
        return shrunk
    shrunk += (values == 0) * np.random.default_rng(seed).normal(0, scale / 10, values.shape).astype(shrunk.dtype)
    return shrunk


def _stuck(teacher: Model) -> dict[str, int]:
    """Return the elements of the constants that have no dim that can grow, by the reasons of their axes."""
    from onnx_net2net.algebra.dims import leaves
    from onnx_net2net.analysis.inference import infer
    from onnx_net2net.graph.flatten import open_bodies

    reasons: Counter[str] = Counter()
    analysis = infer(open_bodies(teacher).model)
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        found = [dim for axis in use.axes for dim in leaves(axis)]
        if all(dim.frozen for dim in found):
            elements = math.prod(axis.size for axis in use.axes)
            reasons.update({dim.frozen or "": elements for dim in found if dim.size > 1})
    return dict(reasons.most_common(5))


def _status(error: Exception) -> str:
    from onnx_net2net.errors import BadInputError, NotEquivalentError, RefusedError

    if isinstance(error, NotEquivalentError):
        return "broken"
    if isinstance(error, RefusedError):
        return "refused"
    if isinstance(error, BadInputError):
        return "no teacher" if str(error).startswith("the teacher") else "bad input"
    return "crash"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600]


def _place(error: BaseException) -> str:
    """Return where in this package an exception came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "onnx_net2net" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"


def _result(job: Job) -> Result:
    return Result(str(job.path), job.family, exporter(job.path), job.factor, job.way)


# --- Workers ----------------------------------------------------------------------------------------------------


def _work(connection: Connection, folder: str, memory: float | None, verbose: bool) -> None:
    """Answer jobs until told to stop; the first answer only says that the worker is ready."""
    tempfile.tempdir = folder  # of the parent, which removes it even when this process is killed
    if not verbose:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # native libraries print, too
        os.dup2(nowhere, 2)
    if memory is not None:
        import resource

        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    connection.send(None)
    with contextlib.suppress(EOFError):
        while (job := connection.recv()) is not None:
            connection.send(run_job(job))


class Worker:
    """A process that does one job at a time, and is replaced when it dies or takes too long."""

    def __init__(self, folder: str, memory: float | None, timeout: float, verbose: bool) -> None:
        self._arguments = folder, memory, verbose
        self._timeout = timeout
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()  # so that the death of the process ends the connection
        self.job: Job | None = None
        self.is_ready = False
        self.deadline = time.monotonic() + 120

    def give(self, job: Job) -> None:
        """Start a job."""
        self.job = job
        self.deadline = time.monotonic() + self._timeout
        self.connection.send(job)

    def collect(self) -> Result | None:
        """Return the result that has come, or None if the worker just became ready."""
        try:
            answer: Result | None = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            return self._replace("crash", f"the worker died with exit code {self._process.exitcode}")
        self.is_ready, self.job = True, None
        return answer

    def expire(self) -> Result | None:
        """Give up what takes too long."""
        return self._replace("timeout", f"not done after {self._timeout:g} s")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _replace(self, status: str, error: str) -> Result | None:
        self.stop()
        job = self.job
        if job is None and not self.is_ready:
            raise RuntimeError(f"a worker does not start: {error}")
        self._start()
        if job is None:
            return None
        result = _result(job)
        result.status, result.error = status, error
        return result


def run_all(
    jobs: Sequence[Job],
    number: int,
    done: Callable[[Result], None],
    timeout: float = 60.0,
    memory: float | None = None,
    verbose: bool = False,
) -> None:
    """Run jobs in a pool of workers; `done` is told each result as it comes."""
    waiting = deque(jobs)
    with tempfile.TemporaryDirectory(prefix="run_corpus.", ignore_cleanup_errors=True) as folder:
        workers = [Worker(folder, memory, timeout, verbose) for _ in range(min(number, len(jobs)))]
        try:
            while waiting or any(worker.job for worker in workers):
                _step(workers, waiting, done)
        finally:
            for worker in workers:
                worker.stop()


def _step(workers: Sequence[Worker], waiting: deque[Job], done: Callable[[Result], None]) -> None:
    """Hand out jobs, wait for something to happen, and see to it."""
    for worker in workers:
        if waiting and worker.is_ready and worker.job is None:
            worker.give(waiting.popleft())
    busy = [worker for worker in workers if worker.job is not None or not worker.is_ready]
    patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
    spoke = wait([worker.connection for worker in busy], patience)
    for worker in busy:
        if worker.connection in spoke:
            result = worker.collect()
        elif time.monotonic() >= worker.deadline:
            result = worker.expire()
        else:
            continue
        if result is not None:
            done(result)


# --- Report -----------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Lay out a markdown table; all columns but the first `texts` are numbers."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i < texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


def summary(results: Sequence[Result]) -> str:
    """Return the table by family and exporter."""
    ways = sorted({result.way for result in results})
    header = ["family", "exporter", "models", "grow"]
    for way in ways:
        header += [f"exact {way}", *(f"{name} {way}" for name in _counted(way))]
    header += ["ratio", "worst ratio", "slowest"]
    kinds = sorted({(result.family, result.exporter) for result in results})
    rows = [_row(*kind, [r for r in results if (r.family, r.exporter) == kind], ways) for kind in kinds]
    if len(rows) > 1:
        rows.append(_row("all", "", results, ways))
    return markdown(header, rows, texts=2)


def _row(family: str, source: str, results: Sequence[Result], ways: Sequence[str]) -> list[str]:
    grown = {result.path for result in results if result.grown}
    row = [family, source, str(len({result.path for result in results})), str(len(grown))]
    for way in ways:
        here = [result for result in results if result.way == way]
        row.append(str(sum(result.status == "exact" for result in here)))
        row += [str(sum(map(passes, here))) for passes in _counted(way).values()]
    ratios = [result.ratio for result in results if result.ratio is not None]
    row += [f"{statistics.median(ratios):.2g}", f"{max(ratios):.2g}"] if ratios else ["-", "-"]
    return [*row, f"{max(result.seconds for result in results):.1f} s"]


def _counted(way: str) -> dict[str, Callable[[Result], bool]]:
    """Return what the table counts of the results of a way beside the exact ones."""
    if "transfer" in way:
        return {
            "partial": lambda result: result.status == "partial",
            "filled": lambda result: (result.covered or 0.0) >= ENOUGH,
        }
    if "deeper" in way or "=" in way:
        return {}
    if "back" in way:
        return {"as small": lambda result: result.left is not None and result.left <= 1}
    return {"covered": lambda result: (result.covered or 0.0) >= ENOUGH}


def findings(results: Sequence[Result]) -> Iterator[str]:
    """Yield one line for each way not to be exact or to grow little, with the models that share it; the worst first."""
    statuses = (*FAILURES, "partial", "refused", "no pair", "bad input", "no teacher", "exact")
    rank = {status: number for number, status in enumerate(statuses)}
    fates: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (rank[r.status], r.covered or 0.0, r.path, r.factor)):
        little = result.covered is not None and result.covered < ENOUGH and "=" not in result.way
        if result.status != "exact" or little:
            shared = result.error if result.status not in ("exact", "wrong") else result.path
            fates.setdefault((result.status, shared), []).append(result)
    for found in fates.values():
        first = found[0]
        fate = f"covered {first.covered or 0.0:.0%}" if first.status == "exact" else first.status
        why = _why_kept(first) if first.status == "exact" else first.error
        yield f"{fate}: {_who(found)}: {_shortened(why, 220)}"


def _who(results: Sequence[Result]) -> str:
    """Name the models of some results, the first few of them, and what was done."""
    names = list(dict.fromkeys(f"{result.family}/{Path(result.path).name}" for result in results))
    ways = ", ".join(sorted({result.way for result in results}))
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return f"{', '.join(names[:3] + more)} ({ways})"


def _why_kept(result: Result) -> str:
    kept = [f"{result.kept} growable dims keep their size"] if result.kept else []
    stuck = [f"{reason} [{elements:,}]" for reason, elements in itertools.islice(result.stuck.items(), 3)]
    return "; ".join(kept + stuck) or "the dims that grew have few weights"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def frozen_reasons(results: Sequence[Result], number: int = 10) -> str:
    """Return the table of the reasons that keep most weights from growing, node and tensor names left out.

    Only of models that grew little; a weight counts for each of its axes.
    """
    elements: Counter[str] = Counter()
    models: dict[str, set[str]] = {}
    for result in {result.path: result for result in results if result.stuck}.values():
        for reason, count in result.stuck.items():
            kind = re.sub(r"(?<!\w)'[^']*'", "'*'", reason)
            elements[kind] += count
            models.setdefault(kind, set()).add(result.path)
    rows = [(kind, str(len(models[kind])), f"{count:,}") for kind, count in elements.most_common(number)]
    return markdown(["reason", "models", "elements"], rows, texts=1)


def report(results: Sequence[Result], limit: int | None, out: TextIO) -> None:
    """Print the tables and the findings."""
    print(summary(results), file=out)
    if any(result.left is not None for result in results):
        print("\nas small: so many have no more parameters than their teachers when widened and narrowed;", file=out)
    print(
        "\ngrow: so many models have a dim that can grow (the others were refused, with a reason, or do not run);",
        file=out,
    )
    print(
        f"exact: so many students are; covered: so many have {ENOUGH:.0%} of their weights on an axis that grew;",
        file=out,
    )
    print("ratio: largest error by the teacher's own float noise, median and worst.", file=out)
    lines = list(findings(results))
    if lines:
        shown = lines if limit is None else lines[:limit]
        print("\nNot exact, or covered less:\n", file=out)
        print(*(f"- {line}" for line in shown), sep="\n", file=out)
        if len(shown) < len(lines):
            print(f"- ... and {len(lines) - len(shown)} more (--limit)", file=out)
    if any(result.stuck for result in results):
        print(f"\nWhy weights cannot grow:\n\n{frozen_reasons(results)}", file=out)


# --- Command line -----------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Widen and verify every model of some folders.")
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="searched for .onnx and .onnx.xz")
    parser.add_argument("--factors", metavar="F", nargs="+", type=float, default=[1.37, 2.0], help="default: 1.37 2")
    parser.add_argument("--set", metavar="PATTERN=SIZE", nargs="+", default=[], help="sizes instead of factors")
    parser.add_argument("--how", metavar="HOW", nargs="+", default=["split"], help="with --set: of `widen`")
    parser.add_argument("--keep-norms", action="store_true", help="factors that are not whole also with norms kept")
    parser.add_argument("--deepen", action="store_true", help="deepen everywhere instead of widening")
    parser.add_argument(
        "--deepen-each", metavar="S", type=float, help="deepen behind one layer after another, S seconds"
    )
    parser.add_argument("--narrow", action="store_true", help="widen and narrow again")
    parser.add_argument(
        "--transfer", metavar="PAIR", nargs="+", choices=TRANSFERS, default=[],
        help=f"fill networks from others that are made of the same model: {', '.join(TRANSFERS)}",
    )  # fmt: skip
    parser.add_argument("--filter", metavar="PATTERN", action="append", default=[], help="only these paths or names")
    parser.add_argument("--sample", metavar="N", type=int, help="only N models, spread over folders, always the same")
    parser.add_argument(
        "--cnn",
        action="store_true",
        help="only models with Conv, Gemm or MatMul layers and none of: a MatMul of two activations, "
        "com.microsoft operators, LSTM, GRU, RNN",
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--timeout", metavar="S", type=float, default=60.0, help="per model and factor (default: 60)")
    parser.add_argument("--memory", metavar="GB", type=float, help="limit of each worker")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write one JSON line per model and factor")
    parser.add_argument("--limit", metavar="N", type=int, help="list at most N findings")
    parser.add_argument("--exit-code", action="store_true", help="exit 1 if a student is wrong, or one crashed or hung")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.exists():
            parser.error(f"no such folder: {folder}")
    if options.jobs < 1 or options.timeout <= 0 or (options.sample or 1) < 1:
        parser.error("--jobs, --timeout and --sample must be positive")
    return options


def _run(jobs: Sequence[Job], options: argparse.Namespace) -> list[Result]:
    """Run the jobs, with a progress bar on a terminal."""
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(options.json.open("w")) if options.json else None
        bar = stack.enter_context(Progress(*columns, console=console, disable=not sys.stderr.isatty()))
        task = bar.add_task("models x factors", total=len(jobs))

        def done(result: Result) -> None:
            results.append(result)
            if file is not None:
                print(json.dumps(_jsonable(asdict(result))), file=file, flush=True)
            bar.update(task, advance=1)

        run_all(jobs, options.jobs, done, options.timeout, options.memory, options.verbose)
    return results


def _jsonable(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _jobs(path: Path, options: argparse.Namespace) -> Iterator[Job]:
    """Yield what is to be done with a model."""
    family = path.resolve().parent.name
    for pair in options.transfer:
        for factor in options.factors if pair in ("wider", "narrower") else (0.0,):
            yield Job(path, family, factor, transfer=pair)
    if options.transfer:
        return
    if options.deepen_each:
        yield Job(path, family, deeper="each", seconds=options.deepen_each)
        return
    if options.deepen:
        yield Job(path, family, deeper="identity")
        yield Job(path, family, deeper="residual")
        return
    if options.set:
        yield from (Job(path, family, size=size, how=how) for size in options.set for how in options.how)
        return
    for factor in options.factors:
        yield Job(path, family, factor, narrow=options.narrow)
        if options.keep_norms and factor % 1:
            yield Job(path, family, factor, keep_norms=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the corpus; returns the exit code."""
    options = _parse(arguments)
    paths = find_models(options.folders, options.filter, options.cnn, options.sample)
    if not paths:
        print("there are no models", file=sys.stderr)
        return 2
    jobs = [job for path in paths for job in _jobs(path, options)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and their files go, too
    results = _run(jobs, options)
    report(results, options.limit, sys.stdout)
    failed = sum(result.status in FAILURES for result in results)
    return 1 if failed and options.exit_code else 0


if __name__ == "__main__":
    sys.exit(main())
