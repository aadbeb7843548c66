"""Models that cannot be worked with are refused in one line."""

import numpy as np
import onnx
import pytest
from features import FEATURES
from onnx import TensorProto, helper
from small import build, info, mlp, tensor

from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.model import load


def changed(change, proto=None):
    proto = proto or build()
    change(proto)
    return proto


def relu(source, result, name="n"):
    return helper.make_node("Relu", [source], [result], name=name)


def outer_and_body(body_node):
    body = helper.make_graph([body_node], "b", [], [info("b")])
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)
    return build([node, relu("x", "late")], [info("x"), info("c", (), TensorProto.BOOL)])


one = tensor("w", np.ones(3, np.float32))
BAD_MODELS = {
    "no graph": (onnx.ModelProto(ir_version=8), "holds no graph"),
    "no operator set": (changed(lambda p: p.ClearField("opset_import")), "imports no version of the default"),
    "opset 6": (build(opset=6), "uses operator set 6; supported are 7 to"),
    "opset 99": (build(opset=99), "uses operator set 99; supported are 7 to"),
    "IR 99": (build(ir_version=99), "it has IR version 99; supported are 1 to"),
    "no IR version": (build(ir_version=0), "it has IR version 0"),
    "no outputs": (changed(lambda p: p.graph.ClearField("output")), "its graph has no outputs"),
    "cycle": (build([relu("b", "a"), relu("a", "b", "m"), relu("x", "y")]), "has a cycle through [nm], [nm]"),
    "unsorted": (build([relu("h", "y"), relu("x", "h")]), "node n needs tensor h before it is produced"),
    "nothing provides": (build([relu("z", "y")]), "node n needs tensor z, which nothing provides"),
    "output": (build(outputs=[info("y"), info("z")]), "output z is not produced by any node"),
    "twice": (build([relu("x", "y"), relu("x", "y")]), "tensor y is produced twice"),
    "node and input": (build([relu("x", "x"), relu("x", "y")]), "tensor x is produced twice"),
    "inputs": (build(inputs=[info("x"), info("x")]), "two of its inputs have the same name"),
    "initializers": (build(initializers=[one, one]), "two of its initializers have the same name"),
    "body": (outer_and_body(relu("late", "b")), "needs tensor late, which nothing provides"),
    "shadow": (outer_and_body(relu("x", "x")), "tensor x is produced twice"),
    "dimension": (build(initializers=[TensorProto(name="w", data_type=1, dims=[-1])]), "w has a negative dim"),
    "type": (build(initializers=[TensorProto(name="w", data_type=99, dims=[1])]), "99"),
    "no data": (build(initializers=[TensorProto(name="w", data_type=1, dims=[2])]), "w has 0 bytes .* instead of 8"),
    "too long": (build(initializers=[TensorProto(name="w", data_type=1, dims=[1], raw_data=b"12345")]), "5 bytes"),
    "wrong field": (build(initializers=[TensorProto(name="w", data_type=1, dims=[1], int64_data=[1])]), "bytes"),
    "external text": (
        build(initializers=[TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], data_location=1)]),
        "tensor w is in an external file, and holds strings",
    ),
    "stub": (load(mlp()).proto, "tensor w is in an external file; load such a model by its path"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(name, tmp_path):
    proto, reason = BAD_MODELS[name]
    with pytest.raises(BadInputError, match=f"^the model cannot be used: .*{reason}[^\n]*$"):
        load(proto)


def test_names_that_are_no_text(tmp_path):
    content = FEATURES["functions"]().SerializeToString()
    for name in (b"Elu", b"MatMul", b"alpha", b"\x01x", b"\x01g"):
        damaged = content.replace(name, name[:-1] + b"\xff")
        assert damaged != content
        (tmp_path / "m.onnx").write_bytes(damaged)
        with pytest.raises(BadInputError, match=r"cannot be used: it has names that are not UTF-8 text$"):
            load(tmp_path / "m.onnx")


def test_what_onnx_graphsurgeon_cannot_take():
    proto = build()
    proto.graph.value_info.append(info("y"))
    proto.graph.value_info[0].type.tensor_type.elem_type = 95
    with pytest.raises(BadInputError, match="y has the element type 95, which does not exist"):
        Graph(load(proto))


def test_bad_files(tmp_path):
    good = mlp().SerializeToString()
    files = {
        "empty": (b"", "is empty"),
        "text": (b"once upon a time", "is no ONNX model, or a truncated one"),
        "truncated": (good[: len(good) // 2], "is no ONNX model, or a truncated one"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=f"^{tmp_path / name} {reason}$"):
            load(tmp_path / name)
    with pytest.raises(BadInputError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(BadInputError, match=r"^cannot read .*none: No such file or directory$"):
        load(tmp_path / "none")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(BadInputError, match="a file has at most 2 GiB"):
        load(tmp_path / "huge")


def test_every_prefix_of_a_file_loads_or_is_refused(tmp_path):
    content = FEATURES["bodies_and_outer_weights"]().SerializeToString()
    for length in range(0, len(content), 7):
        (tmp_path / "m.onnx").write_bytes(content[:length])
        with pytest.raises(BadInputError, match=r"^[^\n]+$"):
            load(tmp_path / "m.onnx")
