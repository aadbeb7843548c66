"""Plant single wrong weights in correct students, and tell how many `verify` finds, and how often it is wrong.

A student is widened, saved and verified, which must find nothing. Then one float weight of the file, drawn by chance,
is multiplied by 1 + error, and the file is verified again. `--no-record` takes the student's record out of the file, so
that only what the models compute tells them apart.

    python tools/planted.py --random 200
    python tools/planted.py models corpus --sample 40 --errors 1e-3 1e-4 --plants 3
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from run_corpus import find_models, read_model

sys.path.insert(0, str(Path(__file__).parent.parent))

from onnx_net2net import Net2NetError, verify, widen
from onnx_net2net.model.protos import all_tensors

Array = np.ndarray
FACTORS = (1.37, 1.5, 2.0, 3.0)
"""By which students are widened, one after another."""


@dataclass
class Score:
    """What came out.

    Attributes:
        students: Correct students that were verified.
        alarms: Those of them that were turned down, with what was said.
        planted: Wrong weights, by the relative error.
        found: Those of them that were found.
        missed: What the others were.
    """

    students: int = 0
    alarms: list[str] = field(default_factory=list)
    planted: collections.Counter[float] = field(default_factory=collections.Counter)
    found: collections.Counter[float] = field(default_factory=collections.Counter)
    missed: list[str] = field(default_factory=list)


def random_models(number: int, seed: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield small networks: perceptrons, convolutions with branches, and pre-norm attention, in random sizes."""
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        make = (_perceptron, _convolutions, _attention)[index % 3]
        yield f"{make.__name__[1:]} {index}", make(rng)


def _model(nodes: list[onnx.NodeProto], shape: list[int | str], out: int, weights: dict[str, Array]) -> onnx.ModelProto:
    """Return a model of float32 from ``x`` to ``y``, whose rank is that of the input."""
    kind = onnx.TensorProto.FLOAT
    sizes = [*shape[:-1], out] if len(shape) < 4 else [shape[0], out, *shape[2:]]
    values = [helper.make_tensor_value_info(name, kind, size) for name, size in (("x", shape), ("y", sizes))]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "planted", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _draw(rng: np.random.Generator, *shape: int, fan: int) -> Array:
    return (rng.standard_normal(shape) / math.sqrt(fan)).astype(np.float32)


def _perceptron(rng: np.random.Generator) -> onnx.ModelProto:
    """Some layers, with as many units as there are; some networks have a single output."""
    sizes = [int(rng.integers(3, 12)), *rng.integers(4, 200, rng.integers(1, 5)), int(rng.choice([1, 3, 40]))]
    nodes, weights, x = [], {}, "x"
    for number, (old, new) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{number}"], weights[f"b{number}"] = _draw(rng, old, new, fan=old), _draw(rng, new, fan=9)
        last = number == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [x, f"w{number}", f"b{number}"], ["y" if last else f"h{number}"]))
        if not last:
            nodes.append(helper.make_node(str(rng.choice(["Relu", "Tanh", "Sigmoid"])), [f"h{number}"], [f"a{number}"]))
        x = f"a{number}"
    return _model(nodes, ["N", sizes[0]], sizes[-1], weights)


def _convolutions(rng: np.random.Generator) -> onnx.ModelProto:
    """A stem, residual blocks, and a head that is a convolution."""
    width, inner = (int(n) for n in rng.integers(4, 48, 2))
    weights = {"w": _draw(rng, width, 3, 3, 3, fan=27)}
    nodes, x = [helper.make_node("Conv", ["x", "w"], ["s0"], pads=[1] * 4)], "s0"
    for number in range(1, int(rng.integers(2, 5))):
        weights[f"u{number}"] = _draw(rng, inner, width, 3, 3, fan=9 * width)
        weights[f"c{number}"] = _draw(rng, inner, fan=9)
        weights[f"d{number}"] = _draw(rng, width, inner, 1, 1, fan=inner)
        nodes += [
            helper.make_node("Conv", [x, f"u{number}", f"c{number}"], [f"i{number}"], pads=[1] * 4),
            helper.make_node("Relu", [f"i{number}"], [f"r{number}"]),
            helper.make_node("Conv", [f"r{number}", f"d{number}"], [f"o{number}"]),
            helper.make_node("Add", [x, f"o{number}"], [f"s{number}"]),
        ]
        x = f"s{number}"
    weights["head"] = _draw(rng, 5, width, 1, 1, fan=width)
    nodes.append(helper.make_node("Conv", [x, "head"], ["y"]))
    return _model(nodes, ["N", 3, 8, 8], 5, weights)


def _attention(rng: np.random.Generator) -> onnx.ModelProto:
    """A pre-norm block of attention with one head, and a perceptron."""
    width, inner = 8 * int(rng.integers(1, 5)), int(rng.integers(8, 99))
    weights = {name: _draw(rng, width, width, fan=width) for name in ("q", "k", "v", "o")}
    weights |= {"g": np.ones(width, np.float32), "up": _draw(rng, width, inner, fan=width), "scale": np.float32(0.3)}
    weights |= {"down": _draw(rng, inner, width, fan=inner), "in": _draw(rng, 6, width, fan=6)}
    weights["head"] = _draw(rng, width, 7, fan=width)
    lines = """MatMul x in s; LayerNormalization s g n; MatMul n q a; MatMul n k b; MatMul n v c; Transpose b t;
        MatMul a t e; Mul e scale f; Softmax f p; MatMul p c m; MatMul m o z; Add s z s2; LayerNormalization s2 g n2;
        MatMul n2 up h; Relu h r; MatMul r down w; Add s2 w s3; MatMul s3 head y"""
    nodes = []
    for line in lines.split(";"):
        kind, *inputs, output = line.split()
        attrs = {"perm": [0, 2, 1]} if kind == "Transpose" else {}
        nodes.append(helper.make_node(kind, inputs, [output], **attrs))
    return _model(nodes, ["N", 5, 6], 7, {name: np.asarray(value) for name, value in weights.items()})


def plant(proto: onnx.ModelProto, error: float, rng: np.random.Generator) -> str | None:
    """Multiply one float weight that is not 0 by 1 + error; return which, None if there is none."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    floats = [tensor for tensor in all_tensors(proto) if tensor.data_type in kinds and math.prod(tensor.dims) > 1]
    sizes = np.array([math.prod(tensor.dims) for tensor in floats], float)
    for _ in range(99 if floats else 0):
        tensor = floats[rng.choice(len(floats), p=sizes / sizes.sum())]
        values = numpy_helper.to_array(tensor).copy()
        place = rng.integers(values.size)
        if values.flat[place] != 0:
            values.flat[place] *= 1 + error
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return f"{tensor.name}[{place}]"
    return None


def examine(
    name: str, teacher: onnx.ModelProto | Path, options: argparse.Namespace, factor: float, score: Score
) -> None:
    """Widen one model, verify it as it is and with wrong weights in it."""
    rng = np.random.default_rng([options.seed, score.students])
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "teacher.onnx", Path(folder) / "student.onnx"
        if isinstance(teacher, onnx.ModelProto):
            onnx.save(teacher, old)
        else:
            old = teacher
        widen(old, factor=factor, seed=score.students).student.save(new)
        proto = onnx.load(new)
        if options.no_record:
            del proto.metadata_props[:]
            onnx.save(proto, new)
        score.students += 1
        correct = verify(old, new, seed=score.students)
        if not correct.equivalent:
            score.alarms.append(f"{name} x {factor:g}: {correct}")
            return
        for error in options.errors:
            for _ in range(options.plants):
                wrong = onnx.ModelProto()
                wrong.CopyFrom(proto)
                what = plant(wrong, error, rng)
                if what is None:
                    return
                onnx.save(wrong, new)
                found = not verify(old, new, seed=score.students).equivalent
                score.planted[error] += 1
                score.found[error] += found
                if not found:
                    score.missed.append(f"{name} x {factor:g}: {what}, {error:g}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit with 1 after a false alarm, or if less was found than `--least` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of models (.onnx, .onnx.xz)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of these models")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="so many random networks too")
    parser.add_argument("--errors", nargs="+", type=float, default=[1e-3, 1e-4], help="relative errors to plant")
    parser.add_argument("--plants", type=int, default=1, help="wrong weights a student and error, one at a time")
    parser.add_argument("--no-record", action="store_true", help="take the record out of the students")
    parser.add_argument("--least", type=float, default=0.95, help="part of the errors that must be found")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    paths = find_models(options.folders, (), False, options.sample) if options.folders else []
    models = [(path.name, path) for path in paths]
    score, started = Score(), time.perf_counter()
    for number, (name, source) in enumerate([*models, *random_models(options.random, options.seed)]):
        try:
            model = read_model(source) if isinstance(source, Path) else source
            examine(name, model, options, FACTORS[number % len(FACTORS)], score)
        except Net2NetError as reason:
            print(f"left out: {name}: {reason}"[:200], file=sys.stderr)
    print(f"{score.students} correct students, {len(score.alarms)} turned down ({time.perf_counter() - started:.0f} s)")
    print(*score.alarms, sep="\n", end="\n" if score.alarms else "")
    for error in options.errors:
        share = score.found[error] / max(1, score.planted[error])
        print(f"off by {error:g}: {score.found[error]} of {score.planted[error]} found ({share:.1%})")
    print(*(f"missed: {what}" for what in score.missed[:20]), sep="\n")
    short = any(score.found[error] < options.least * score.planted[error] for error in options.errors)
    return int(bool(score.alarms) or short)


if __name__ == "__main__":
    sys.exit(main())
