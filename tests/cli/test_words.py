"""What is said to people: the remedy that works, sizes that can be had, and one thing once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_net2net.cli.main import main
from onnx_net2net.operations.verify import verify


def saved(path, nodes, weights):
    values = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.normal(size=shape).astype(dtype), name) for name, (shape, dtype) in weights.items()
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def perceptron(path, operator="Relu", shape=(8, 3), dtype=np.float32, **attributes):
    nodes = [helper.make_node("Gemm", ["x", "a", "a_bias"], ["hidden"], "a"),
             helper.make_node(operator, ["hidden"], ["active"], **attributes),
             helper.make_node("Gemm", ["active", "b", "b_bias"], ["y"], "b")]  # fmt: skip
    return saved(path, nodes, {"a": ((4, 8), np.float32), "a_bias": ((8,), dtype), "b": (shape, np.float32),
                               "b_bias": ((3,), np.float32)})  # fmt: skip


@pytest.mark.parametrize("command", [["widen", "--factor", "2"], ["deepen", "--all"], ["narrow"]])
@pytest.mark.parametrize("fault", [{"shape": (7, 3)}, {"operator": "Relux"}, {"dtype": np.float64}, {"zork": 1}])
def test_that_a_teacher_is_invalid_is_said_first_and_alone(tmp_path, capsys, command, fault):
    teacher = perceptron(tmp_path / "teacher.onnx", **fault)
    assert main([command[0], teacher, "-o", str(tmp_path / "student.onnx"), *command[1:]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("onnx-net2net: the teacher does not run: ")
    assert len(said.err.splitlines()) == 1


def test_inspection_of_an_invalid_model_says_so(tmp_path, capsys):
    model = perceptron(tmp_path / "model.onnx", shape=(7, 3))
    assert main(["inspect", model]) == 2
    assert capsys.readouterr().err.startswith("onnx-net2net: the model does not run: ")


def test_an_operator_of_ones_own_is_no_fault(tmp_path, capsys):
    teacher = perceptron(tmp_path / "teacher.onnx", "Own", domain="my.company")
    assert main(["widen", teacher, "-o", str(tmp_path / "student.onnx"), "--factor", "2"]) == 3
    assert "has no growth rule (my.company::Own" in capsys.readouterr().err


def test_a_model_without_layers_is_said_to_be_one(tmp_path, capsys):
    model = saved(tmp_path / "model.onnx", [helper.make_node("Gather", ["x", "places"], ["y"], axis=1)],
                  {"places": ((3,), np.int64)})  # fmt: skip
    assert main(["deepen", model, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.onnx has no layers behind which anything could be inserted"
    assert lines[1:] == ["no residual blocks that could be repeated"]
    assert main(["deepen", model, "--all", "-o", str(tmp_path / "student.onnx")]) == 3
    assert capsys.readouterr().err == "onnx-net2net: nothing can be inserted: the model has no layers\n"


def test_the_next_sizes_are_said(tmp_path, capsys):
    teacher = perceptron(tmp_path / "teacher.onnx")
    arguments = ["widen", teacher, "-o", str(tmp_path / "student.onnx")]
    assert main([*arguments, "--factor", "1.01"]) == 3
    assert "nearest size to what was asked for; the next are 9 and 10\n" in capsys.readouterr().err
    assert main([*arguments, "--factor", "1.1", "--multiple-of", "16"]) == 3
    assert "the next are 16 and 32\n" in capsys.readouterr().err


def test_near_a_mistyped_pattern_stand_roles_too(tmp_path, capsys):
    teacher = perceptron(tmp_path / "teacher.onnx")
    assert main(["widen", teacher, "-o", str(tmp_path / "student.onnx"), "--set", "output=4"]) == 2
    assert "similar names are outputs" in capsys.readouterr().err


@pytest.mark.parametrize(("working", "said"), [
    ({"--spread 0"}, "; with --spread 0 it is equivalent"),
    ({"--map zero_out"}, "; with --map zero_out it is equivalent"),
    ({"--spread 0", "--map zero_out"}, "; with --spread 0 it is equivalent"),
    (set(), None),
])  # fmt: skip
def test_a_student_that_differs_names_the_option_that_works(tmp_path, capsys, monkeypatch, working, said):
    """Students are judged here by the record of how they were made."""
    records = {"--spread 0": '"spread": 0.0', "--map zero_out": '"map": "zero_out"'}

    def judged(teacher, student, **options):
        record = "" if isinstance(student, Path) else student.proto.metadata_props[0].value
        found = verify(teacher, teacher)
        object.__setattr__(found, "equivalent", any(records[way] in record for way in working))
        return found

    monkeypatch.setattr("onnx_net2net.cli.student.verify", judged)
    teacher = perceptron(tmp_path / "teacher.onnx")
    assert main(["widen", teacher, "-o", str(tmp_path / "student.onnx"), "--factor", "2"]) == 1
    err = capsys.readouterr().err.rstrip("\n")
    assert err.endswith(said) if said else "; with" not in err
    assert not (tmp_path / "student.onnx").exists()
