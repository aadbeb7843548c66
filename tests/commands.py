"""The command line as tests call it, and what they look at."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper, parser

MODELS = Path(__file__).parents[1] / "models"
MLP = MODELS / "digits_mlp.onnx"
SCRIPT = Path(sys.executable).parent / "onnx-net2net"


class Result(NamedTuple):
    code: int
    out: str
    err: str


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_refused(result, code, words):
    """One clear line on stderr, and the right exit code."""
    assert result.code == code
    assert re.fullmatch(rf"onnx-net2net: [^\n]*{words}[^\n]*\n", result.err, re.DOTALL), result.err
    assert "Traceback" not in result.out


def net(text, **weights):
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def changed(path, name, place, by, target):
    """A copy of a model with one element of one weight changed."""
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[place] += by
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(proto, target)
    return target


def good():
    text = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    return net(text, up=draw(8, 64), down=draw(64, 4))
