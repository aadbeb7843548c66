"""Classes as functions from a state dict to a model, and the way of their weights there and back."""

import numpy as np
import onnx
from onnx import helper
from safetensors.numpy import save_file

from onnx_net2net import checkpoint, verify, widen

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def node(op, inputs, output, scope="", **attributes):
    return helper.make_node(
        op, inputs, [output], name=f"/{scope.replace('.', '/')}/{op}" if scope else "", **attributes
    )


def linear(x, weight, bias, y, scope=""):
    """What TorchScript and dynamo make of a Linear on more than two axes, with the weight transposed."""
    return [
        node("MatMul", [x, weight], f"{y}_product", scope),
        node("Add", [f"{y}_product", bias], y, scope),
    ]


def made(class_, state, tmp_path, *steps, **options):
    """Export a class, grow the model, and carry that over to the state dict."""
    teacher, student, file = (tmp_path / name for name in ("teacher.onnx", "student1.onnx", "teacher.safetensors"))
    onnx.save(class_(state), teacher)
    source = teacher
    for number, step in enumerate(steps or [lambda model: widen(model, factor=1.5)], 1):
        student = tmp_path / f"student{number}.onnx"
        step(source).student.save(student)
        source = student
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, file)
    return teacher, student, checkpoint(teacher, student, file, **options)


def check(class_, state, tmp_path, *steps, **options):
    """The class at the new sizes computes what the teacher computes; return relations, and the result."""
    teacher, _student, result = made(class_, state, tmp_path, *steps, **options)
    grown = result.arrays()
    assert {name: array.dtype for name, array in grown.items()} == {n: a.dtype for n, a in state.items()}
    assert any(grown[name].shape != array.shape for name, array in state.items())
    for entry in result.entries:
        assert grown[entry.name].shape == entry.new
    again = class_(grown)
    verify(teacher, again).raise_if_different()
    return {entry.name: entry.relation for entry in result.entries}, result
