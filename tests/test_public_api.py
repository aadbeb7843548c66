"""What people meet first: what counts as a model, what comes back, and how it looks."""

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from commands import MLP

import onnx_net2net
from onnx_net2net import BadInputError, inspect, load, session, verify, widen

X = np.zeros((2, 1, 8, 8), np.float32)


def test_every_public_name_is_there():
    missing = []
    for name in onnx_net2net.__all__:
        try:
            getattr(onnx_net2net, name)
        except BadInputError as error:  # an extra is not installed
            missing.append(str(error).partition(" needs ")[2].partition(":")[0].partition(".")[0])
        except RuntimeError:  # a torchvision that does not fit the installed torch, which lightning imports
            missing.append("lightning")
    assert set(missing) <= {"torch", "transformers", "lightning"}


class Exported:
    """As torch.onnx.export returns it."""

    model_proto = onnx.load(MLP)


@pytest.mark.parametrize(
    "source",
    [MLP, str(MLP), MLP.read_bytes(), bytearray(MLP.read_bytes()), onnx.load(MLP), ir.load(MLP), Exported()],
    ids=lambda source: type(source).__name__,
)
def test_a_model_is_taken_as_people_have_it(source):
    assert load(source).parameters == load(MLP).parameters
    assert widen(source, factor=1.5).student.parameters > load(MLP).parameters


@pytest.mark.parametrize("source", [3, None, {"a": 1}, io.BytesIO()])
def test_what_is_no_model_is_said_in_a_line(source):
    with pytest.raises(BadInputError, match="is no ONNX model: give a file, bytes"):
        load(source)
    with pytest.raises(BadInputError, match="these bytes are no ONNX model"):
        load(b"\xff\xff\xff")


def test_a_student_is_whole_without_a_file():
    student = widen(MLP, factor=1.5).student
    proto = student.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert verify(MLP, proto).equivalent
    old, new = (session(model).run(None, {"image": X})[0] for model in (MLP, student))
    np.testing.assert_allclose(new, old, atol=1e-4)


def test_the_weightless_part_of_a_model_is_not_taken_for_one(tmp_path):
    onnx.save(load(MLP).proto, tmp_path / "weightless.onnx")
    with pytest.raises(BadInputError, match="it is the `proto` of a Model, without weights: use `save`"):
        load(tmp_path / "weightless.onnx")


def test_an_inspection_is_asked_by_name():
    found = inspect(MLP)
    assert found["fc1"].size == 128
    assert found["*2"] is found["fc2"]
    assert [group.name for group in found] == [group.name for group in found.groups]
    assert len(found) == len(found.groups)
    with pytest.raises(KeyError, match=r"fits fc1, fc2"):
        found["fc*"]
    with pytest.raises(KeyError, match="there is no dim 'conv'"):
        found["conv"]


def test_results_show_as_tables_in_a_notebook():
    result = widen(MLP, factor=1.5)
    assert "<td>fc1</td><td>128</td><td>192</td><td>replicate</td>" in result._repr_html_()
    assert "<td>fc1</td>" in inspect(MLP)._repr_html_()
    assert "equivalent in" in verify(MLP, result.student)._repr_html_()


def test_a_table_escapes_names():
    proto = onnx.load(MLP)
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("fc1", "<b>fc1")
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name.replace("fc1", "<b>fc1")
    assert "<td>&lt;b&gt;fc1</td>" in inspect(proto)._repr_html_()
