"""Widen random graphs in which every operator with a growth rule occurs, and verify them in onnxruntime.

The operators come with their operands from the conformance tables of the tests and from `onnx.backend.test`. A graph
has a few of them: what each reads is made from what others gave, by layers of weights, so that all axes are hidden.
A student that differs, but is exact in double precision, counts as rounding (`doubles.py`); every other is wrong.

    python tools/random_graphs.py --graphs 1000
    python tools/random_graphs.py --graphs 1 --seed 714 --out failures
    python tools/random_graphs.py --graphs 200 --routers

With `--routers` a graph has one or two mixtures of experts (`tests/random_routers.py`), whose experts get copies or
parts.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from doubles import is_exact_in_doubles
from onnx import TensorProto, defs, helper, numpy_helper
from workers import in_processes

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / folder) for folder in ("", "rules")]

from moe import DISPATCHES, MODULES  # noqa: E402
from random_routers import FORMS, routed  # noqa: E402

from onnx_net2net import Net2NetError, NotEquivalentError, RefusedError, inspect, verify, widen  # noqa: E402
from onnx_net2net.model.checks import OPSETS  # noqa: E402

Array = np.ndarray
FLOATS = ("float32", "float16", "float64")
BYTES = ("uint8", "int8")
FACTORS = (1.25, 1.5, 2.0, 2.6)
MAPS = ("replicate", "replicate", "zero_out", "zero_in")
FAILURES = ("wrong", "crash", "timeout")
MOST_ELEMENTS = 4000
TIMEOUT = 120
"""Seconds of its own time for a graph; a process that takes many more by the clock hangs."""


@dataclass(frozen=True)
class Piece:
    """An operator with operands: the node, arrays by name, which of them must be constants, and what it gives."""

    node: onnx.NodeProto
    opset: int
    operands: Mapping[str, Array]
    fixed: frozenset[str]
    results: tuple[tuple[str, str, tuple[int, ...]], ...] = ()  # name, type, shape

    @property
    def kind(self) -> str:
        """The operator, with its domain."""
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type


@dataclass(frozen=True)
class Result:
    """What became of a graph."""

    seed: int
    status: str
    kinds: tuple[str, ...]
    said: str = ""


# --- Operators with operands ----------------------------------------------------------------------------------------


@functools.cache
def pieces() -> dict[str, list[Piece]]:
    """Return the cases of the tests and of onnx by operator; those that onnxruntime does not run are left out later."""
    import operators
    import test_attention
    import test_contrib
    import test_indexing

    found: dict[str, list[Piece]] = {}
    for case in (*operators.TABLE, *(case for cases in operators.backend_cases().values() for case in cases)):
        _add(found, Piece(case.node, case.opset, case.operands, case.fixed))
    rng = np.random.default_rng(0)
    for row in test_indexing.ROWS:
        kind, operands, _, opset, outputs, attrs = row.values
        given = [test_indexing.floats(*o) if isinstance(o, tuple) else o for o in operands]
        _add(found, _piece(kind, given, [f"y{k}" for k in range(outputs)], opset, "", attrs, operands))
    for row in (*test_contrib.ROWS, *test_attention.ROWS):
        kind, operands, _, options = row.values
        attrs = {name: value for name, value in options.items() if name not in ("domain", "opset", "outputs")}
        given = [(rng.random(o) - 0.3).astype(np.float32) if isinstance(o, tuple) else o for o in operands]
        results = ["" if name == "-" else name for name in options.get("outputs", "y").split()]
        domain = options.get("domain", "com.microsoft")
        _add(found, _piece(kind, given, results, options.get("opset", 20), domain, attrs, operands))
    return found


def _piece(
    kind: str, given: Sequence[Any], results: Sequence[str], opset: int, domain: str, attrs: Mapping[str, Any],
    operands: Sequence[Any],
) -> Piece:  # fmt: skip
    """Make a piece of a row of a table: shapes are random floats, `Fed` is no constant, other arrays are."""
    names = ["" if operand is None else f"i{k}" for k, operand in enumerate(given)]
    arrays = {name: np.asarray(getattr(o, "array", o)) for name, o in zip(names, given, strict=True) if name}
    fixed = {name for name, o in zip(names, operands, strict=True) if isinstance(o, np.ndarray)}
    while not names[-1]:  # some of onnxruntime's kernels end the process there
        names.pop()
    node = helper.make_node(kind, names, list(results), domain=domain, **attrs)
    return Piece(node, opset, arrays, frozenset(fixed))


def _add(found: dict[str, list[Piece]], piece: Piece) -> None:
    small = sum(array.size for array in piece.operands.values()) <= MOST_ELEMENTS
    if small and piece.opset in OPSETS:
        found.setdefault(piece.kind, []).append(piece)


def typed(piece: Piece) -> Piece | None:
    """Return a piece with what it gives; None where onnxruntime does not run it."""
    infos = [_info(name, array) for name, array in piece.operands.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in piece.node.output if name]
    graph = helper.make_graph([piece.node], "one", infos, outputs)
    session = _session(_model(graph, piece.opset))
    try:
        given = session.run(None, dict(piece.operands)) if session else []
    except Exception:  # onnxruntime's errors have no base of their own
        return None
    results = [(o.name, a.dtype.name, a.shape) for o, a in zip(outputs, given, strict=False) if isinstance(a, Array)]
    return Piece(piece.node, piece.opset, piece.operands, piece.fixed, tuple(results)) if results else None


def fits(piece: Piece, opset: int) -> bool:
    """Tell whether an operator is the same one at another operator set."""
    kind = piece.node.op_type
    if piece.node.domain or piece.opset == opset:
        return True
    if not defs.has(kind, opset, "") or not defs.has(kind, piece.opset, ""):
        return False
    return defs.get_schema(kind, opset, "").since_version == defs.get_schema(kind, piece.opset, "").since_version


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _model(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 21 else 10)


def _session(model: onnx.ModelProto) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # of several unrelated classes
        return None


# --- Graphs of them -------------------------------------------------------------------------------------------------


@dataclass
class Graph:
    """A graph that is being written down; its tensors are floats of known shapes."""

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def node(self, kind: str, *inputs: str, shape: tuple[int, ...] = (), **attrs: Any) -> str:
        """Add a node of one result."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"{kind.lower()}{len(self.nodes)}", **attrs))
        return name

    def constant(self, array: Array) -> str:
        """Add an initializer."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """Regroup axes."""
        return self.node("Reshape", tensor, self.constant(np.array(shape, np.int64)))

    def layer(self, tensor: str, rank: int, axis: int, old: int, new: int) -> str:
        """Map one axis to another size."""
        matrix = (self.rng.standard_normal((old, new)) * old**-0.5).astype(np.float32)
        if axis == rank - 1:
            return self.node("MatMul", tensor, self.constant(matrix))
        if axis == rank - 2:
            return self.node("MatMul", self.constant(matrix.T), tensor)
        if rank == 4 and axis == 1:
            return self.node("Conv", tensor, self.constant(matrix.T[:, :, None, None]))
        turned = [a for a in range(rank) if a != axis] + [axis]
        back = [turned.index(a) for a in range(rank)]
        moved = self.node("MatMul", self.node("Transpose", tensor, perm=turned), self.constant(matrix))
        return self.node("Transpose", moved, perm=back)

    def made(self, shape: tuple[int, ...], dtype: str) -> str:
        """Make a tensor of a shape and type from one that there is."""
        source = str(self.rng.choice(list(self.tensors)))
        have, tensor = list(self.tensors[source]), source
        self.read.add(source)
        if tuple(have) != shape or self.rng.random() < 0.5:
            hidden = not shape
            while len(have) > max(len(shape), 1):
                have[-2:] = [have[-2] * have[-1]]
                tensor = self.reshape(tensor, have)
            while len(have) < len(shape):
                have.insert(int(self.rng.integers(len(have) + 1)), 1)
                tensor = self.reshape(tensor, have)
            for axis, size in enumerate(shape or (1,)):
                if have[axis] != size or self.rng.random() < 0.5:
                    tensor = self.layer(tensor, len(have), axis, have[axis], size)
            tensor = self.reshape(tensor, []) if hidden else tensor
        kind = str(self.rng.choice(["Identity", "Tanh", "Sigmoid", "positive", "positive"]))
        if kind == "positive":  # many operators are defined there only
            quarter = self.constant(np.array(0.25, np.float32))
            tensor = self.node("Add", self.node("Sigmoid", tensor), quarter)
        elif kind != "Identity":
            tensor = self.node(kind, tensor)
        if dtype == "bool":
            return self.node("Greater", tensor, self.constant(np.array(0.4, np.float32)))
        if dtype in BYTES:
            tensor = self.node("Mul", self.node("Sigmoid", tensor), self.constant(np.array(30, np.float32)))
        if dtype != "float32":
            return self.node("Cast", tensor, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        return tensor

    def add(self, piece: Piece) -> None:
        """Add an operator, with some of its operands made of what there is, and what it gives."""
        inputs = []
        for index, name in enumerate(piece.node.input):
            array = piece.operands.get(name)
            if array is None:
                inputs.append("")
                continue
            loose = name not in piece.fixed and array.dtype.name in (*FLOATS, *BYTES, "bool") and array.size > 0
            is_made = loose and (index == 0 or self.rng.random() < 0.4)
            inputs.append(self.made(array.shape, array.dtype.name) if is_made else self.constant(array))
        names = {name: f"{piece.node.op_type.lower()}{len(self.nodes)}_{name}" for name in piece.node.output if name}
        node = onnx.NodeProto()
        node.CopyFrom(piece.node)
        node.name = f"{piece.node.op_type}_{len(self.nodes)}"
        node.input[:], node.output[:] = inputs, [names.get(name, "") for name in piece.node.output]
        self.nodes.append(node)
        for name, dtype, shape in piece.results:
            if 0 < np.prod(shape, initial=1) <= MOST_ELEMENTS:
                tensor = names[name]
                tensor = tensor if dtype == "float32" else self.node("Cast", tensor, to=TensorProto.FLOAT)
                tensor, shape = (tensor, shape) if shape else (self.reshape(tensor, [1]), (1,))
                self.tensors[tensor] = shape

    def mix(self) -> None:
        """Add, join or cut tensors, as networks do."""
        names = list(self.tensors)
        one = str(self.rng.choice(names))
        shape = self.tensors[one]
        like = [name for name in names if self.tensors[name] == shape]
        other = str(self.rng.choice(like))
        self.read.update((one, other))
        if self.rng.random() < 0.5:
            self.tensors[self.node("Add", one, other)] = shape
            return
        axis = int(self.rng.integers(len(shape)))
        joined = self.node("Concat", one, other, axis=axis)
        self.tensors[joined] = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])

    def finished(self, inputs: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
        """Return the model: what nobody reads is read by layers, whose results are the outputs."""
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        outputs = []
        for tensor in [name for name in self.tensors if name not in self.read]:
            shape, result = list(self.tensors[tensor]), tensor
            for axis in range(len(shape)):
                if self.rng.random() < 0.8:
                    result = self.layer(result, len(shape), axis, shape[axis], 3)
                    shape[axis] = 3
            outputs.append(helper.make_tensor_value_info(self.node("Identity", result), TensorProto.FLOAT, shape))
        return _model(helper.make_graph(self.nodes, "random", infos, outputs, self.weights), self.opset)


def random_graph(seed: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a graph and the operators in it; those of consecutive seeds go through all operators."""
    rng = np.random.default_rng(seed)
    known = pieces()
    kinds = sorted(known)
    order = np.random.default_rng(seed // len(kinds)).permutation(len(kinds))
    first = _draw(known[kinds[order[seed % len(kinds)]]], rng, None)
    graph = Graph(rng, first.opset if first else 18)
    graph.tensors = {"x": (2, 6), "image": (2, 3, 5, 5)}
    inputs = dict(graph.tensors)
    chosen = [first] if first else []
    while len(chosen) < rng.integers(2, 6):
        piece = _draw(known[str(rng.choice(kinds))], rng, graph.opset)
        chosen += [piece] if piece else []
    for number in rng.permutation(len(chosen)):
        graph.add(chosen[number])
        if rng.random() < 0.3:
            graph.mix()
    return graph.finished(inputs), tuple(piece.kind for piece in chosen)


def _draw(cases: Sequence[Piece], rng: np.random.Generator, opset: int | None) -> Piece | None:
    """Draw one of the cases of an operator that onnxruntime runs, at an operator set if one is given."""
    for number in rng.permutation(len(cases))[:8]:
        piece = cases[number]
        if (opset is None or fits(piece, opset)) and (found := typed(piece)):
            return found
    return None


# --- What becomes of them -------------------------------------------------------------------------------------------


def check(seed: int, out: Path | None = None, timeout: int = TIMEOUT, routers: bool = False) -> Result:
    """Make a graph, widen it at random and verify the student."""
    kinds: tuple[str, ...] = ()
    teacher = None
    if not routers:
        pieces()  # takes long, once
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, timeout)  # of its own time, however busy the machine is
    try:
        if routers:
            teacher, kinds, asked = routed(seed)
        else:
            (teacher, kinds), asked = random_graph(seed), _asked(seed)
        result = Result(seed, *_checked(teacher, seed, kinds, asked))
    except TimeoutError:
        result = Result(seed, "timeout", kinds)
    except Exception:  # whatever it is, it is what this looks for
        result = Result(seed, "crash", kinds, traceback.format_exc(limit=-3))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if out and teacher and result.status in FAILURES:
        out.mkdir(parents=True, exist_ok=True)
        onnx.save(teacher, out / f"{seed}.onnx")
    return result


def _late(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError


def _asked(seed: int) -> dict[str, Any]:
    """Draw options of `widen`."""
    rng = np.random.default_rng([seed, 1])
    factor, map = float(rng.choice(FACTORS)), str(rng.choice(MAPS))
    return {"factor": factor, "map": map, "spread": float(rng.choice([0.0, 0.3, 0.6]))}


def _checked(
    teacher: onnx.ModelProto, seed: int, kinds: tuple[str, ...], asked: Mapping[str, Any]
) -> tuple[str, tuple[str, ...], str]:
    if _session(teacher) is None:
        return "no teacher", kinds, ""
    said, options = str(asked), {**asked, "seed": seed}
    try:
        widening = widen(teacher, **options)
    except RefusedError as error:
        return "refused", kinds, f"{said}: {error}"
    try:
        found = verify(teacher, widening.student, seed=seed)
    except NotEquivalentError as error:  # it does not run
        return "wrong", kinds, f"{said}: {error}"
    except Net2NetError as error:  # onnxruntime gives other numbers each time, or takes no input
        return "unverified", kinds, f"{said}: {error}"
    if not found.equivalent:
        try:
            status = "rounding" if is_exact_in_doubles(teacher, **options) else "wrong"
        except Exception as error:  # of any library
            return "wrong", kinds, f"{said}: {found}; not run in doubles: {error}"
        return status, kinds, f"{said}: {found}"
    grew = any(group.reason is None for group in inspect(teacher).groups)
    return "exact" if grew else "nothing grew", kinds, said


def run(seeds: Sequence[int], jobs: int, out: Path | None, routers: bool = False) -> Iterator[Result]:
    """Check graphs, in processes of their own if there are several jobs."""
    work = functools.partial(check, out=out, routers=routers)
    if jobs == 1:
        yield from map(work, seeds)
        return
    yield from in_processes(work, seeds, jobs, 10 * TIMEOUT, lambda seed, error: Result(seed, "crash", (), str(error)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check random graphs; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description="Widen and verify random graphs of every operator with a rule.")
    parser.add_argument("--graphs", metavar="N", type=int, default=300, help="default: 300")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first graph (default: 0)")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--routers", action="store_true", help="mixtures of experts, whose experts get copies or parts")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="failing graphs are written there")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    for result in run(range(options.seed, options.seed + options.graphs), options.jobs, options.out, options.routers):
        counts[result.status] += 1
        exact.update(result.kinds if result.status == "exact" else ())
        if result.status in FAILURES:
            print(f"{result.seed}: {result.status} ({', '.join(result.kinds)}) {result.said}", flush=True)
    print(", ".join(f"{number} {status}" for status, number in counts.most_common()))
    known = {*FORMS, *DISPATCHES, *MODULES} if options.routers else set(pieces())
    never = sorted(known - set(exact))
    what = "forms" if options.routers else "operators"
    print(f"{len(exact)} {what} in exact students; in none: {', '.join(never) or 'no other'}")
    return 1 if any(counts[status] for status in FAILURES) else 0


if __name__ == "__main__":
    sys.exit(main())
