"""Models that cannot be worked with: one line, and exit code 2."""

import os
import re

import onnx
import pytest
from commands import MLP, MODELS, assert_refused, contents, draw, good
from onnx import numpy_helper


def write(proto, folder):
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


def external(folder, location="m.onnx.data"):
    onnx.save(good(), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    write(proto, folder)


def no_protobuf(folder):
    (folder / "m.onnx").write_text("once upon a time")


def no_onnx(folder):
    (folder / "m.onnx").write_bytes((MODELS / "digits_test.npz").read_bytes())


def empty(folder):
    (folder / "m.onnx").touch()


def truncated(folder):
    content = MLP.read_bytes()
    (folder / "m.onnx").write_bytes(content[: len(content) // 2])


def cyclic(folder):
    proto = good()
    proto.graph.node[0].input[0] = "r"
    write(proto, folder)


def unsorted(folder):
    proto = good()
    nodes = list(proto.graph.node)
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes[::-1])
    write(proto, folder)


def missing_data(folder):
    external(folder)
    (folder / "m.onnx.data").unlink()


def short_data(folder):
    external(folder)
    os.truncate(folder / "m.onnx.data", 3000)


def escaping_data(folder):
    external(folder, "../secret")
    (folder / "m.onnx.data").rename(folder.parent / "secret")


def escaping_link(folder):
    external(folder)
    (folder / "m.onnx.data").rename(folder.parent / "secret")
    (folder / "m.onnx.data").symlink_to(folder.parent / "secret")


def absolute_data(folder):
    external(folder, os.fspath(folder / "m.onnx.data"))


def unknown_opset(folder):
    proto = good()
    proto.opset_import[0].version = 99
    write(proto, folder)


def old_opset(folder):
    proto = good()
    proto.opset_import[0].version = 6
    write(proto, folder)


def newer_format(folder):
    proto = good()
    proto.ir_version = 99
    write(proto, folder)


def without_outputs(folder):
    proto = good()
    proto.graph.ClearField("output")
    write(proto, folder)


def without_a_file(folder):
    """Nothing there."""


def a_folder(folder):
    (folder / "m.onnx").mkdir()


BAD_MODELS = {
    no_protobuf: "no ONNX model, or a truncated one",
    no_onnx: "no ONNX model",
    empty: "is empty",
    truncated: "no ONNX model, or a truncated one",
    cyclic: "cycle through",
    unsorted: "not sorted",
    missing_data: "external data file m.onnx.data is missing",
    short_data: "external data file m.onnx.data is too short for tensor",
    escaping_data: "external data location '../secret' is not a path inside the model's folder",
    escaping_link: "is a link that leaves the model's folder",
    absolute_data: "is not a path inside the model's folder",
    unknown_opset: "operator set 99; supported are 7 to",
    old_opset: "operator set 6; supported are 7 to",
    newer_format: "IR version 99",
    without_outputs: "its graph has no outputs",
    without_a_file: "No such file or directory",
    a_folder: "is a folder",
}


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__)
def test_bad_models(cli, tmp_path, make):
    folder = tmp_path / "models"
    folder.mkdir()
    make(folder)
    (folder / "student.onnx").write_text("precious")
    before, model = contents(tmp_path), folder / "m.onnx"
    for arguments in (
        ("inspect", model),
        ("inspect", model, "--json"),
        ("widen", model, "-o", folder / "student.onnx", "--factor", "2"),
        ("widen", model, "-o", folder / "new.onnx", "--factor", "2", "--no-verify", "--json"),
        ("verify", model, MLP),
        ("verify", MLP, model),
    ):
        result = cli(*arguments)
        assert_refused(result, 2, re.escape(BAD_MODELS[make]))
        assert "m.onnx" in result.err
        assert result.out == ""
        assert contents(tmp_path) == before


def test_inputs_that_onnxruntime_cannot_run_are_the_teachers_fault(cli, tmp_path):
    proto = good()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(draw(63, 4), "down"))
    onnx.save(proto, tmp_path / "m.onnx")
    before = contents(tmp_path)
    for arguments in (("verify", tmp_path / "m.onnx", MLP), ("verify", tmp_path / "m.onnx", tmp_path / "m.onnx")):
        result = cli(*arguments)
        assert result.code in (1, 2)
        assert len(result.err.splitlines()) == 1
    result = cli("widen", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--factor", "2")
    assert result.code in (2, 3)
    assert len(result.err.splitlines()) == 1
    assert contents(tmp_path) == before
