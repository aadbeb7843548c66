"""Attack the command line with files that are broken, or made to break it.

    python tools/attack.py --flips 2000 --hostile 500 --states 300

Flips change bytes of sound models. Hostile graphs are sound ones in which an attribute, a type, a shape, a name or a
wire is another. States are what else is read: records of what was done, recipes, examples, state dicts. Whatever a
file holds, a command exits with 0, 1, 2 or 3, says why in one line, leaves nothing behind, and what it writes computes
what the teacher computes. Attempts run in processes of their own, so that hangs and crashes are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from workers import LostError, Worker

from onnx_net2net.cli.main import main as command_line
from onnx_net2net.model.history import HISTORY

ROOT = Path(__file__).resolve().parent.parent
CAUGHT = "cannot work with"
"""How the command line calls an error that no reader has foreseen: sound, but the reader should be mended."""

EXTREMES = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
NAMES = ("", "x", "w1", "y", "\n", "a\x1b[31mb", "n" * 5000, "\u202eabc", "../../etc/passwd", "[/red]", "%s{0}")
Rng = np.random.Generator


# --- Sound models -------------------------------------------------------------------------------------------------


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.4).astype(np.float32), name)


def _whole(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto], shape: Sequence[int | str], result: int
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * result)], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _perceptron() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"), node("Relu", ["h"], ["r"], "act"),
             node("Gemm", ["r", "w2", "b2"], ["y"], "fc2")]  # fmt: skip
    return _model(nodes, [_weight("w1", 8, 12), _weight("b1", 12), _weight("w2", 12, 4), _weight("b2", 4)], ["N", 8], 2)


def _convolution() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c"], "conv1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], "bn"), node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "w2"], ["d"], "conv2", group=3), node("Concat", ["d", "d"], ["e"], axis=1),
        node("GlobalAveragePool", ["e"], ["p"]), node("Reshape", ["p", "s"], ["q"]),
        node("MatMul", ["q", "w3"], ["y"], "fc"),
    ]  # fmt: skip
    variance = numpy_helper.from_array(np.full(6, 0.5, np.float32), "v")
    weights = [_weight("w1", 6, 3, 3, 3), *(_weight(name, 6) for name in "gbm"), variance, _weight("w2", 6, 2, 1, 1),
               _whole("s", 0, -1), _weight("w3", 12, 5)]  # fmt: skip
    return _model(nodes, weights, ["N", 3, 8, 8], 2)


def _attention() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["n"], "ln"), node("MatMul", ["n", "wq"], ["qkv"], "qkv"),
        node("Split", ["qkv"], ["q", "k", "v"], axis=-1),
        *(step for t in "qkv" for step in (node("Reshape", [t, "heads"], [f"{t}h"]),
                                           node("Transpose", [f"{t}h"], [f"{t}t"], perm=[0, 2, 1, 3]))),
        node("Transpose", ["kt"], ["ktt"], perm=[0, 1, 3, 2]), node("MatMul", ["qt", "ktt"], ["s"]),
        node("Softmax", ["s"], ["a"]), node("MatMul", ["a", "vt"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]), node("Reshape", ["ot", "flat"], ["of"]),
        node("MatMul", ["of", "wo"], ["p"], "out"), node("Add", ["p", "x"], ["y"]),
    ]  # fmt: skip
    weights = [_weight("g", 8), _weight("b", 8), _weight("wq", 8, 24), _weight("wo", 8, 8),
               _whole("heads", 0, 0, 2, 4), _whole("flat", 0, 0, 8)]  # fmt: skip
    return _model(nodes, weights, ["N", 5, 8], 3)


def _control() -> onnx.ModelProto:
    node, value = helper.make_node, helper.make_tensor_value_info
    branches = {
        name: helper.make_graph([node("MatMul", ["h", w], [t]), node(op, [t], [f"{t}o"])], name, [],
                                [value(f"{t}o", TensorProto.FLOAT, None)], [_weight(w, 12, 6)])
        for name, w, t, op in (("then_branch", "wa", "a", "Relu"), ("else_branch", "wb", "b", "Tanh"))
    }  # fmt: skip
    functions = [helper.make_function("my", "Act", ["i"], ["o"], [node("Relu", ["i"], ["o"])],
                                      [helper.make_opsetid("", 17)])]  # fmt: skip
    nodes = [node("MatMul", ["x", "w1"], ["h0"], "fc1"), node("Act", ["h0"], ["h"], "act", domain="my"),
             node("ReduceSum", ["x"], ["t"], keepdims=0), node("Greater", ["t", "z"], ["c"]),
             node("If", ["c"], ["i"], "if", **branches), node("MatMul", ["i", "w2"], ["y"], "fc2")]  # fmt: skip
    zero = numpy_helper.from_array(np.float32(0), "z")
    model = _model(nodes, [_weight("w1", 8, 12), zero, _weight("w2", 6, 3)], ["N", 8], 2)
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


def _recurrent() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["s", "", ""], "lstm", hidden_size=5),
             node("Squeeze", ["s", "one"], ["q"]), node("MatMul", ["q", "wo"], ["y"])]  # fmt: skip
    weights = [
        _weight("w", 1, 20, 4),
        _weight("r", 1, 20, 5),
        _weight("b", 1, 40),
        _whole("one", 1),
        _weight("wo", 5, 3),
    ]
    return _model(nodes, weights, [3, "N", 4], 3)


def _quantized() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [node("DequantizeLinear", ["w1", "s", "z"], ["w"], axis=1), node("MatMul", ["x", "w"], ["h"], "fc1"),
             node("QuantizeLinear", ["h", "a", "u"], ["hq"]), node("DequantizeLinear", ["hq", "a", "u"], ["hd"]),
             node("Relu", ["hd"], ["r"]), node("MatMul", ["r", "w2"], ["y"], "fc2")]  # fmt: skip
    rng = np.random.default_rng(5)
    weights = [numpy_helper.from_array(rng.integers(-99, 99, (8, 12)).astype(np.int8), "w1"),
               numpy_helper.from_array(np.full(12, 0.01, np.float32), "s"),
               numpy_helper.from_array(np.zeros(12, np.int8), "z"), _weight("w2", 12, 4),
               numpy_helper.from_array(np.float32(0.05), "a"), numpy_helper.from_array(np.uint8(128), "u")]  # fmt: skip
    return _model(nodes, weights, ["N", 8], 2)


@cache
def families() -> tuple[bytes, ...]:
    """Return sound models of several kinds, serialized; the first is the smallest."""
    made = [_perceptron(), _convolution(), _attention(), _control(), _recurrent(), _quantized()]
    return (*(model.SerializeToString() for model in made), (ROOT / "models/digits_mlp.onnx").read_bytes())


# --- Attempts -----------------------------------------------------------------------------------------------------


def _flipped(rng: Rng, folder: Path) -> None:
    """Change some bytes, or cut the file, or put something in."""
    data = bytearray(families()[rng.integers(len(families()))])
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        at = int(rng.integers(min(len(data), 1 << 14)))
        kind = rng.integers(8)
        if kind < 5:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 5:
            data[at] = int(rng.integers(256))
        elif kind == 6:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            del data[at : at + int(rng.integers(1, 9))]
    if rng.random() < 0.05:
        del data[int(rng.integers(len(data))) :]
    (folder / "m.onnx").write_bytes(data)


def _pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))] if len(items) else None


def _change_attribute(rng: Rng, model: onnx.ModelProto) -> None:
    node = _pick(rng, model.graph.node)
    if not node.attribute or rng.random() < 0.3:
        names = ("axis", "axes", "perm", "group", "pads", "strides", "kernel_shape", "alpha", "epsilon", "to", "mode",
                 "hidden_size", "keepdims", "transB", "value", "allowzero", "direction", "activations")  # fmt: skip
        values = (int(_pick(rng, EXTREMES)), 0.5, float("nan"), [1, 2], [-1] * 9, [0.5], "text", ["a", "b"],
                  _weight("t", 2, 2))  # fmt: skip
        node.attribute.append(helper.make_attribute(_pick(rng, names), _pick(rng, values)))
        return
    attribute = _pick(rng, node.attribute)
    kind = rng.integers(6)
    if kind == 0:
        attribute.i = _pick(rng, EXTREMES)
    elif kind == 1:
        attribute.type = int(rng.integers(0, 15))
    elif kind == 2:
        attribute.ints[:] = [_pick(rng, EXTREMES) for _ in range(int(rng.integers(0, 6)))]
    elif kind == 3:
        attribute.s, attribute.type = b"\xff\xfe\x00", onnx.AttributeProto.STRING
    elif kind == 4:
        attribute.name = _pick(rng, NAMES)
    else:
        node.attribute.remove(attribute)


def _change_type(rng: Rng, model: onnx.ModelProto) -> None:
    graph = model.graph
    kind = _pick(rng, [*graph.input, *graph.output, *graph.value_info]).type.tensor_type
    choice = rng.integers(4)
    if choice == 0:
        kind.elem_type = int(_pick(rng, (0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 99, 2**30)))
    elif choice == 1:
        kind.ClearField("shape")
    elif choice == 2:
        kind.shape.dim.add(dim_value=_pick(rng, EXTREMES))
    elif kind.shape.dim:
        dim = _pick(rng, kind.shape.dim)
        if rng.random() < 0.5:
            dim.dim_value = _pick(rng, EXTREMES)
        else:
            dim.dim_param = _pick(rng, (*NAMES, "2*N", "N//0", "N**9999999", "N + M", "9" * 400))


def _change_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    tensor = _pick(rng, model.graph.initializer)
    choice = rng.integers(8)
    if choice == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, EXTREMES)
    elif choice == 1:
        tensor.data_type = int(_pick(rng, (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 99)))
    elif choice == 2:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(0, len(tensor.raw_data) + 1))]
    elif choice == 3:
        tensor.dims.append(_pick(rng, EXTREMES))
    elif choice == 4:
        tensor.data_location = TensorProto.EXTERNAL
        places = ("m.onnx", "missing", "../m.onnx", "/etc/passwd", "", "a" * 300, "\x00", "C:\\x")
        tensor.external_data.add(key="location", value=_pick(rng, places))
        tensor.external_data.add(key="offset", value=_pick(rng, ("0", "-1", "abc", "99999999999999999999", "1e3")))
    elif choice == 5 and tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        values = numpy_helper.to_array(tensor).copy()
        values.flat[int(rng.integers(values.size))] = _pick(rng, EXTREMES)
        tensor.raw_data = values.tobytes()
    elif choice == 6 and tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        values = numpy_helper.to_array(tensor).copy()
        values.flat[int(rng.integers(values.size))] = _pick(rng, (np.nan, np.inf, -np.inf, 1e38, 1e-45, 0))
        tensor.raw_data = values.tobytes()
    else:
        tensor.name = _pick(rng, NAMES)


def _change_wire(rng: Rng, model: onnx.ModelProto) -> None:
    graph = model.graph
    node = _pick(rng, graph.node)
    names = [name for other in graph.node for name in (*other.input, *other.output)] + list(NAMES)
    choice = rng.integers(9)
    if choice == 0 and node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, names)
    elif choice == 1:
        node.output[int(rng.integers(len(node.output)))] = _pick(rng, names)
    elif choice == 2:
        graph.node.remove(node)
    elif choice == 3:
        graph.node.add().CopyFrom(node)
    elif choice == 4:
        node.input.append(_pick(rng, names))
    elif choice == 5 and node.input:
        del node.input[-1:]
    elif choice == 6:
        (graph.output if rng.random() < 0.5 else graph.input).pop()
    elif choice == 7:
        graph.output.add().CopyFrom(helper.make_tensor_value_info(_pick(rng, names), TensorProto.FLOAT, None))
    else:
        order = rng.permutation(len(graph.node))
        nodes = [onnx.NodeProto.FromString(graph.node[k].SerializeToString()) for k in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _change_operator(rng: Rng, model: onnx.ModelProto) -> None:
    node = _pick(rng, model.graph.node)
    if rng.random() < 0.8:
        kinds = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
        node.op_type = _pick(rng, (*kinds, *NAMES))
    else:
        node.domain = _pick(rng, ("ai.onnx", "ai.onnx.ml", "com.microsoft", "my", *NAMES))


def _change_rest(rng: Rng, model: onnx.ModelProto) -> None:
    choice = rng.integers(6)
    if choice == 0:
        model.ir_version = _pick(rng, (0, 3, 4, 13, 99, -1))
    elif choice == 1 and model.opset_import:
        model.opset_import[0].version = _pick(rng, (0, 6, 7, 9, 12, 13, 18, 21, 24, 2**31, -1))
    elif choice == 2:
        del model.opset_import[:]
    elif choice == 3:
        model.metadata_props.add(key=HISTORY, value=_record(rng))
    elif choice == 4:
        _pick(rng, model.graph.node).name = _pick(rng, NAMES)
    else:
        node = helper.make_node("F", ["i"], ["o"], domain="my")
        model.functions.append(helper.make_function("my", "F", ["i"], ["o"], [node], [helper.make_opsetid("my", 1)]))


_CHANGES = (_change_attribute, _change_type, _change_tensor, _change_wire, _change_operator, _change_rest)


def _hostile(rng: Rng, folder: Path) -> None:
    """Change what a model says in some places."""
    model = onnx.ModelProto.FromString(_pick(rng, families()))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        with contextlib.suppress(ValueError, TypeError, IndexError, AttributeError, OverflowError):  # nothing to change
            _pick(rng, _CHANGES)(rng, model)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def _value(rng: Rng, depth: int = 0) -> Any:
    """Return any value that JSON has."""
    plain = (None, True, -1, 0, 1.5, 10**30, "", "widen", "2x", "layer.*", [], {}, float("nan"), *NAMES)
    if depth > 2 or rng.random() < 0.6:
        return _pick(rng, plain)
    many = [_value(rng, depth + 1) for _ in range(int(rng.integers(0, 4)))]
    return many if rng.random() < 0.5 else dict(zip(("a", "operation", "x"), many, strict=False))


def _step(rng: Rng) -> Any:
    step: dict[str, Any] = {"operation": _pick(rng, ("widen", "deepen", "narrow", "transfer"))}
    keys = ("factor", "sizes", "only", "multiple_of", "map", "spread", "noise", "seed", "prior", "fill_norms", "count",
            "framework", "after", "all", "pairs", "way", "width", "repeat", "depth", "append", "calibrate", "target",
            "data", "interface", "teacher", "version", "calibrated on", "operation", "inlined functions")  # fmt: skip
    sound = {"factor": 1.5, "sizes": {"*": "2x"}, "all": True, "count": 1, "target": "good.onnx"}
    for _ in range(int(rng.integers(0, 4))):
        key = _pick(rng, keys)
        step[key] = sound[key] if key in sound and rng.random() < 0.5 else _value(rng)
    return step if rng.random() < 0.9 else _value(rng)


def _record(rng: Rng) -> str:
    kind = rng.integers(6)
    if kind == 0:
        return str(_pick(rng, ("[" * 100_000, "{", "null", "7", '"a"', "[1]", "9" * 5000, "\x00", "[[[]]]")))
    return json.dumps([_step(rng) for _ in range(int(rng.integers(0, 3)))])


def _state(rng: Rng, folder: Path) -> None:
    """Write a sound model, and another file that is broken."""
    model = onnx.ModelProto.FromString(families()[0])
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    model.metadata_props.add(key=HISTORY, value=_record(rng))
    (folder / "student.onnx").write_bytes(model.SerializeToString())
    text = _record(rng)
    tagged = ("2026-13-45", "!!int abc", "!!timestamp abc", "!!python/object:os.system x", "&a [*a]", "9" * 5000)
    if rng.random() < 0.5:
        text = f"- operation: widen\n  factor: {_pick(rng, tagged)}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    arrays = {"x": _pick(rng, (np.ones((4, 8), np.float32), np.float32(3), np.ones((0, 8), np.float32), np.ones(3),
                               np.array(["a"]), np.full((2, 8), np.nan, np.float32)))}  # fmt: skip
    np.savez_compressed(folder / "data.npz", **arrays)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / "state.safetensors")
    itself: dict[str, Any] = {"a": 1}
    itself["state_dict"] = itself
    with zipfile.ZipFile(folder / "state.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(itself))
        archive.writestr("archive/version", "3")
    for name in ("data.npz", "state.safetensors", "state.pt", "recipe.yaml"):
        if rng.random() < 0.5:
            data = bytearray((folder / name).read_bytes())
            for _ in range(int(rng.integers(1, 5))):
                data[int(rng.integers(min(len(data), 400)))] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(data if rng.random() < 0.8 else data[: len(data) // 2])


_MODEL_COMMANDS = (
    "inspect m.onnx", "inspect m.onnx --json", "widen m.onnx -o o.onnx --factor 1.5",
    "widen m.onnx -o o.onnx --factor 2 --no-verify", "deepen m.onnx -o o.onnx --all", "deepen m.onnx --list",
    "narrow m.onnx -o o.onnx", "transfer m.onnx good.onnx -o o.onnx", "transfer good.onnx m.onnx -o o.onnx",
    "verify m.onnx m.onnx", "verify m.onnx good.onnx", "similarity good.onnx m.onnx --measure kept",
    "checkpoint good.onnx m.onnx -o o.safetensors", "replay good.onnx m.onnx -o o.onnx",
)  # fmt: skip
_STATE_COMMANDS = (
    "widen student.onnx -o o.onnx --factor 1.5", "verify m.onnx student.onnx", "replay m.onnx student.onnx -o o.onnx",
    "checkpoint m.onnx student.onnx -o o.safetensors", "replay m.onnx recipe.yaml -o o.onnx",
    "verify m.onnx m.onnx --data data.npz", "transfer m.onnx m.onnx -o o.onnx --data data.npz",
    "deepen m.onnx -o o.onnx --all --calibrate data.npz",
    "checkpoint m.onnx student.onnx -o o.safetensors --state-dict state.safetensors",
    "checkpoint m.onnx student.onnx -o o.safetensors --state-dict state.pt",
    "transfer m.onnx m.onnx -o o.safetensors --state-dict state.safetensors",
    "checkpoint m.onnx student.onnx -o o.safetensors --state-dict state.safetensors --optimizer state.pt",
)  # fmt: skip
KINDS: dict[str, tuple[Callable[[Rng, Path], None], Sequence[str]]] = {
    "flips": (_flipped, _MODEL_COMMANDS),
    "hostile": (_hostile, _MODEL_COMMANDS),
    "states": (_state, _STATE_COMMANDS),
}


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = command_line(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, errors.getvalue()


def attempt(kind: str, seed: int, number: int, folder: Path) -> tuple[str, int, str]:
    """Make files and run a command on them, in a folder that is empty.

    Returns:
        The command, its exit code, and what is wrong with what it did ("" if nothing is).
    """
    rng = np.random.default_rng([seed, number, len(kind)])
    make, commands = KINDS[kind]
    (folder / "good.onnx").write_bytes(families()[0])
    make(rng, folder)
    before = set(os.listdir(folder))
    command = str(_pick(rng, commands))
    arguments = [str(folder / word) if "." in word and not word[0].isdigit() else word for word in command.split()]
    try:
        code, errors = run(arguments)
    except BaseException as error:  # nothing may get out of the command line
        return command, -1, f"raises {type(error).__name__}: {error}"
    return command, code, _wrong(folder, before, arguments, code, errors)


def _wrong(folder: Path, before: set[str], arguments: Sequence[str], code: int, errors: str) -> str:
    lines = errors.splitlines()
    said = lines[-1] if lines else ""
    if code not in (0, 1, 2, 3):
        return f"exit {code}: {said}"
    if "Traceback" in errors or len(lines) > 1 or (code > 1 and not said.startswith("onnx-net2net: ")):
        return f"says {errors[:500]!r}"
    if CAUGHT in errors:
        return f"not foreseen: {said}"
    outputs = {Path(path).name for option, path in itertools.pairwise(arguments) if option == "-o"}
    made = set(os.listdir(folder)) - before
    if made - outputs - {f"{name}.data" for name in outputs} or (made and code):
        return f"exit {code} leaves {sorted(made)}"
    if "--no-verify" in arguments and not code:
        checked, errors = run(["verify", arguments[1], str(folder / "o.onnx")])
        if checked not in (0, 2):  # 2: the teacher itself does not run
            return f"a wrong student: {errors}"
    return ""


# --- Processes ----------------------------------------------------------------------------------------------------


def _work(job: tuple[str, int, int]) -> tuple[str, int, str]:
    """Make an attempt in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="attack."))
    try:
        return attempt(*job, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attack(kind: str, count: int, seed: int, limit: float = 60) -> Iterator[tuple[int, str, int, str]]:
    """Make attempts of a kind; yield the number, the command, the exit code and what is wrong."""
    worker = Worker(_work)
    try:
        for number in range(count):
            try:
                yield (number, *worker.run((kind, seed, number), limit))
            except LostError as error:
                yield number, "?", -1, str(error)
    finally:
        worker.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attempts that are asked for; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one attempt of a kind, in this process")
    options = parser.parse_args(arguments)
    failed = 0
    for kind in KINDS:
        count, started, codes = getattr(options, kind), time.perf_counter(), Counter[int]()
        if count and options.only is not None:
            with tempfile.TemporaryDirectory() as folder:
                print(*attempt(kind, options.seed, options.only, Path(folder)))
            continue
        for number, command, code, problem in attack(kind, count, options.seed):
            codes[code] += 1
            if problem:
                failed += 1
                print(f"{kind} {number}: {command}: {problem}", flush=True)
        if count:
            print(f"{kind}: {count} in {time.perf_counter() - started:.0f} s, exits {dict(sorted(codes.items()))}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
