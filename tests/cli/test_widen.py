"""`widen`: what is printed, what is written, and which options make no sense."""

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import MLP, assert_refused, contents, draw, net
from onnx import TensorProto


def test_widen_prints_before_and_after_and_writes_the_student(cli, teacher):
    path = teacher.parent / "student.onnx"
    code, out, err = cli("widen", teacher, "-o", path, "--force", "--factor", "1.37")
    assert (code, err) == (0, "")
    rows = {row.split()[0]: row.split()[1:] for row in out.splitlines() if row.strip()}
    assert rows["fc1"][:2] == ["128", "175"]
    assert rows["parameters"] == ["17,226", "27,753"]
    assert "file size" in out
    assert re.search(r"^equivalent in \d+ runs on CPU: ", out, re.MULTILINE)
    assert f"{path.name} in" in out.splitlines()[-1]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)
    assert sorted(file.name for file in teacher.parent.iterdir()) == ["student.onnx", "teacher.onnx"]


def test_widen_as_json(cli, teacher):
    path = teacher.parent / "student.onnx"
    code, out, err = cli(
        "widen", teacher, "-o", path, "--force", "--factor", "1.37", "--multiple-of", "8", "--seed", "5", "--json"
    )
    assert (code, err) == (0, "")
    record = json.loads(out)
    told = {"exact", "seed", "covered", "dims", "fixed", "notes", "verification", "output", "recipe"}
    told |= {"parameters", "bytes", "multiplications", "activations"}
    assert set(record) == told
    assert record["recipe"]["peak_rate"]["adam"] == pytest.approx(128 / 176, abs=0.01)
    assert (record["exact"], record["seed"], record["output"]) == (True, 5, str(path))
    assert record["parameters"]["before"] == 17226 < record["parameters"]["after"]
    assert record["dims"][0] == {"name": "fc1", "before": 128, "after": 176, "wanted": 128 * 1.37, "map": "replicate"}
    assert {dim["name"] for dim in record["fixed"]} >= {"fc3"}
    assert record["verification"]["equivalent"] is True
    assert path.exists()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--set", "fc1=150"], (150, 64)),
        (["--set", "fc*=1.5x"], (192, 96)),
        (["--set", "fc1=150", "--set", "fc2=2x"], (150, 128)),
        (["--set", "fc1=150", "--factor", "2"], (150, 128)),
        (["--factor", "2", "--only", "fc2"], (128, 128)),
        (["--factor", "2", "--only", "fc1", "--only", "fc2"], (256, 128)),
        (["--factor", "1.37", "--multiple-of", "16"], (176, 80)),
        (["--factor", "1"], (128, 64)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_sizes_that_are_asked_for(cli, teacher, options, sizes):
    path = teacher.parent / "student.onnx"
    assert cli("widen", teacher, "-o", path, "--force", *options).code == 0
    widths = {t.name: t.dims[0] for t in onnx.load(path).graph.initializer if t.name.endswith(".bias")}
    assert (widths["fc1.bias"], widths["fc2.bias"]) == sizes


def test_the_table_says_where_a_size_is_not_the_one_wanted(cli, teacher):
    path = teacher.parent / "student.onnx"
    out = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--multiple-of", "80").out
    rows = {row.split()[0]: row.split()[1:5] for row in out.splitlines() if row.split()[:1] in (["fc1"], ["fc2"])}
    assert rows["fc1"] == ["128", "160", "192", "replicate"]
    assert rows["fc2"] == ["64", "80", "96", "replicate"]


def test_the_seed_makes_a_student_repeatable(cli, teacher):
    files = []
    for seed in ("1", "1", "2"):
        path = teacher.parent / "student.onnx"
        assert cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--seed", seed).code == 0
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


def test_an_existing_file_is_replaced(cli, teacher):
    path = teacher.parent / "student.onnx"
    path.write_text("something else")
    assert cli("widen", teacher, "-o", path, "--force", "--factor", "1.5").code == 0
    onnx.checker.check_model(path)


def test_a_student_can_be_the_teacher_of_the_next(cli, teacher, student):
    again = teacher.parent / "again.onnx"
    assert cli("widen", student, "-o", again, "--factor", "1.5").code == 0
    assert cli("verify", teacher, again).code == 0


def test_external_data_stays_external(cli, tmp_path):
    source = tmp_path / "teacher.onnx"
    onnx.save(onnx.load(MLP), source, save_as_external_data=True, location="weights", size_threshold=100)
    assert cli("widen", source, "-o", tmp_path / "student.onnx", "--factor", "1.5").code == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"teacher.onnx", "weights", "student.onnx", "student.onnx.data"}
    assert cli("verify", source, tmp_path / "student.onnx").code == 0


def test_without_verification(cli, teacher):
    path = teacher.parent / "student.onnx"
    code, out, _ = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--no-verify")
    assert code == 0
    assert "not verified" in out
    assert path.exists()
    code, out, _ = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--no-verify", "--json")
    assert json.loads(out)["verification"] is None


@pytest.mark.parametrize("options", [["--noise", "0.1"], ["--map", "random_pad"]], ids=" ".join)
def test_what_is_not_exact_says_so_and_is_written(cli, teacher, options):
    path = teacher.parent / "student.onnx"
    code, out, err = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", *options)
    assert (code, err) == (0, "")
    assert "not exact" in out
    assert "not equivalent" in out
    assert path.exists()
    record = json.loads(cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", *options, "--json").out)
    assert record["exact"] is record["verification"]["equivalent"] is False


@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_maps(cli, teacher, map):
    path = teacher.parent / "student.onnx"
    code, out, _ = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--map", map, "--spread", "0")
    assert code == 0
    assert map in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--factor", "0.5"], "the factor must be a number of at least 1, not 0.5"),
        (["--factor", "-2"], "at least 1"),
        (["--factor", "nan"], "at least 1, not nan"),
        (["--factor", "inf"], "at least 1, not inf"),
        ([], "give a factor or sizes"),
        (["--only", "fc1"], "give a factor or sizes"),
        (["--factor", "2", "--only", "fc9"], "no dim is named 'fc9'; similar names are .*fc1"),
        (["--set", "fcl=150"], "no dim is named 'fcl'; similar names are .*fc1"),
        (["--set", "layer3.*=2x"], "no dim is named 'layer3.*'; similar names are fc1, fc2"),
        (["--set", "FC1=150"], "no dim is named 'FC1'; similar names are .*fc1"),
        (["--set", "fc1"], "--set fc1: write PATTERN=SIZE, like"),
        (["--set", "fc1="], "write PATTERN=SIZE"),
        (["--set", "=150"], "write PATTERN=SIZE"),
        (["--set", "fc1=wide"], "fc1=wide: not a size"),
        (["--set", "fc1=1.5"], "fc1=1.5: not a size"),
        (["--set", "fc1=nanx"], "not a size"),
        (["--set", "fc1=100"], "'fc1' has 128 units already; 100 would be narrower"),
        (["--set", "fc1=0.5x"], "would be narrower"),
        (["--factor", "2", "--multiple-of", "0"], "multiple_of must be at least 1, not 0"),
        (["--factor", "2", "--spread", "-1"], "spread must be"),
        (["--factor", "2", "--noise", "nan"], "noise must be"),
        (["--factor", "2", "--seed", "-1"], "the seed must be at least 0, not -1"),
        (["--factor", "1e300"], "'fc1' would have .* units; at most"),
        (["--set", "fc1=100000000000000"], "'fc1' would have 100000000000000 units; at most"),
        (["--factor", "2", "--atol", "nan"], "atol must be a number of at least 0, not nan"),
        (["--factor", "2", "--samples", "0"], "samples must be at least 1, not 0"),
        (["--factor", "2", "--data", "none.npz"], "none.npz.*No such file"),
        (["--factor", "2", "--data", MLP], "digits_mlp.onnx is no npz"),
        (["--factor", "2", "--provider", "abacus"], "no provider 'abacus'; known are cpu, cuda"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_options_of_widen(cli, teacher, options, words):
    path = teacher.parent / "student.onnx"
    path.write_text("precious")
    before = contents(teacher.parent)
    result = cli("widen", teacher, "-o", path, "--force", *options)
    assert_refused(result, 2, words)
    assert result.out == ""
    assert contents(teacher.parent) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "fc3=20", "--map", "zero_in", "--set", "fc1=150"], "'fc1' does not admit the map zero_in"),
        (["--set", "fc1=150", "--multiple-of", "8"], "cannot have 150 units exactly.*144 and 152"),
        (["--factor", "1.5", "--map", "zero_in"], "zero_in.*Relu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_fulfilled_exactly_are_refused(cli, teacher, options, words):
    path = teacher.parent / "student.onnx"
    path.write_text("precious")
    before = contents(teacher.parent)
    result = cli("widen", teacher, "-o", path, "--force", *options)
    assert_refused(result, 3, words)
    assert result.out == ""
    assert contents(teacher.parent) == before


def test_a_model_in_which_nothing_can_grow_is_refused(cli, tmp_path):
    onnx.save(net("(float[2, 8] x) => (float[2, 4] y) { y = MatMul(x, w) }", w=draw(8, 4)), tmp_path / "m.onnx")
    before = contents(tmp_path)
    assert_refused(
        cli("widen", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--factor", "2"), 3, "nothing grows: 'w': .*'y'"
    )
    assert contents(tmp_path) == before


def test_a_student_that_is_found_to_differ_is_not_written(cli, teacher):
    path = teacher.parent / "student.onnx"
    path.write_text("precious")
    before = contents(teacher.parent)
    result = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--atol", "0", "--rtol", "0")
    assert_refused(result, 1, r"not equivalent in \d+ runs")
    assert contents(teacher.parent) == before
    assert "wrote" not in result.out
    result = cli("widen", teacher, "-o", path, "--force", "--factor", "1.5", "--atol", "0", "--json")
    assert_refused(result, 1, r"not equivalent in \d+ runs")
    assert result.out == ""
    assert contents(teacher.parent) == before


def test_a_random_teacher_is_no_teacher(cli, tmp_path):
    text = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, up) r = Relu(h) m = MatMul(r, down) z = RandomNormalLike(m) y = Add(m, z) }"""
    onnx.save(net(text, up=draw(8, 16), down=draw(16, 4)), tmp_path / "m.onnx")
    np.savez(tmp_path / "inputs.npz", x=draw(2, 8))
    before = contents(tmp_path)
    words = "the teacher is random: two runs on the same inputs differ"
    for options in ((), ("--data", tmp_path / "inputs.npz")):
        result = cli("verify", tmp_path / "m.onnx", tmp_path / "m.onnx", *options)
        assert (result.code, result.out, result.err) == (2, "", f"onnx-net2net: {words}\n")
        assert_refused(
            cli("widen", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--factor", "2", *options), 2, words
        )
        assert contents(tmp_path) == before


def test_half_precision(cli, tmp_path):
    text = "(float16[N, 8] x) => (float16[N, 4] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    proto = net(text, up=draw(8, 16).astype(np.float16), down=draw(16, 4).astype(np.float16))
    onnx.save(proto, tmp_path / "m.onnx")
    assert cli("widen", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5").code == 0
    assert onnx.load(tmp_path / "s.onnx").graph.initializer[0].data_type == TensorProto.FLOAT16
