"""`inspect`: the dims as a table and as JSON."""

import json

import onnx
from commands import draw, net


def test_inspect_lists_the_dims(cli, teacher):
    code, out, err = cli("inspect", teacher)
    assert (code, err) == (0, "")
    assert "teacher.onnx: 17,226 parameters" in out
    rows = {row.split()[0]: row.split()[1:] for row in out.splitlines() if row.strip()}
    assert rows["fc1"] == ["128", "3", "16,512", "yes"]
    assert rows["fc3"] == ["outputs", "10", "2", "650", "by", "--set"]
    assert "fc3: only by --set: is the model's output 'logits'" in out


def test_inspect_as_json(cli, teacher):
    code, out, err = cli("inspect", teacher, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert set(record) == {"parameters", "dims"}
    assert record["parameters"] == 17226
    (first,) = [dim for dim in record["dims"] if dim["name"] == "fc1"]
    assert first == {
        "name": "fc1",
        "role": "",
        "size": 128,
        "tensors": 3,
        "weights": 16512,
        "growable": True,
        "on_request": False,
        "multiples_only": False,
        "fillable": False,
        "reason": None,
    }
    assert {dim["reason"] for dim in record["dims"] if dim["name"] == "fc3"} == {"is the model's output 'logits'"}


def test_inspect_says_which_node_is_the_reason(cli, tmp_path):
    proto = net("(float[2, 8] x) => (float[2, 16] y) { h = MatMul(x, up) y = LogSoftmax(h) }", up=draw(8, 16))
    proto.graph.node[1].name = "/head/LogSoftmax"
    onnx.save(proto, tmp_path / "m.onnx")
    told = cli("inspect", tmp_path / "m.onnx").out
    assert "only by --set: LogSoftmax '/head/LogSoftmax' normalises over this axis" in " ".join(told.split())
