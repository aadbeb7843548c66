"""The command line: what it prints where, its exit codes, and that nothing is written unless all went well."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnx_net2net.cli.main import main

MODELS = Path(__file__).parents[2] / "models"
MLP = MODELS / "digits_mlp.onnx"
SCRIPT = Path(sys.executable).parent / "onnx-net2net"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """Runs the command line in this process."""

    def run(*arguments):
        try:
            code = main([os.fspath(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's way to end
            code = exit.code
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.onnx"
    path.write_bytes(MLP.read_bytes())
    return path


@pytest.fixture
def student(cli, teacher):
    path = teacher.parent / "student.onnx"
    assert cli("widen", teacher, "-o", path, "--factor", "1.5").code == 0
    return path


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


# --- What goes well ------------------------------------------------------------------------------------------


def test_inspect_lists_the_dims(cli, teacher):
    code, out, err = cli("inspect", teacher)
    assert (code, err) == (0, "")
    assert "teacher.onnx: 17,226 parameters" in out
    rows = {row.split()[0]: row.split()[1:] for row in out.splitlines() if row.strip()}
    assert rows["fc1"] == ["128", "3", "16,512", "yes"]
    assert rows["fc3"] == [
        "outputs",
        "10",
        "2",
        "650",
        "only",
        "by",
        "--set:",
        "is",
        "the",
        "model's",
        "output",
        "'logits'",
    ]


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


def test_widen_prints_before_and_after_and_writes_the_student(cli, teacher):
    path = teacher.parent / "student.onnx"
    code, out, err = cli("widen", teacher, "-o", path, "--factor", "1.37")
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
        "widen", teacher, "-o", path, "--factor", "1.37", "--multiple-of", "8", "--seed", "5", "--json"
    )
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert set(record) == {"exact", "seed", "covered", "parameters", "dims", "fixed", "notes", "verification", "output"}
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
    assert cli("widen", teacher, "-o", path, *options).code == 0
    widths = {t.name: t.dims[0] for t in onnx.load(path).graph.initializer if t.name.endswith(".bias")}
    assert (widths["fc1.bias"], widths["fc2.bias"]) == sizes


def test_the_table_says_where_a_size_is_not_the_one_wanted(cli, teacher):
    path = teacher.parent / "student.onnx"
    out = cli("widen", teacher, "-o", path, "--factor", "1.5", "--multiple-of", "80").out
    rows = {row.split()[0]: row.split()[1:5] for row in out.splitlines() if row.split()[:1] in (["fc1"], ["fc2"])}
    assert rows["fc1"] == ["128", "160", "192", "replicate"]
    assert rows["fc2"] == ["64", "80", "96", "replicate"]


def test_the_seed_makes_a_student_repeatable(cli, teacher):
    files = []
    for seed in ("1", "1", "2"):
        path = teacher.parent / "student.onnx"
        assert cli("widen", teacher, "-o", path, "--factor", "1.5", "--seed", seed).code == 0
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


def test_an_existing_file_is_replaced(cli, teacher):
    path = teacher.parent / "student.onnx"
    path.write_text("something else")
    assert cli("widen", teacher, "-o", path, "--factor", "1.5").code == 0
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
    code, out, _ = cli("widen", teacher, "-o", path, "--factor", "1.5", "--no-verify")
    assert code == 0
    assert "not verified" in out
    assert path.exists()
    code, out, _ = cli("widen", teacher, "-o", path, "--factor", "1.5", "--no-verify", "--json")
    assert json.loads(out)["verification"] is None


@pytest.mark.parametrize("options", [["--noise", "0.1"], ["--map", "random_pad"]], ids=" ".join)
def test_what_is_not_exact_says_so_and_is_written(cli, teacher, options):
    path = teacher.parent / "student.onnx"
    code, out, err = cli("widen", teacher, "-o", path, "--factor", "1.5", *options)
    assert (code, err) == (0, "")
    assert "not exact" in out
    assert "not equivalent" in out
    assert path.exists()
    record = json.loads(cli("widen", teacher, "-o", path, "--factor", "1.5", *options, "--json").out)
    assert record["exact"] is record["verification"]["equivalent"] is False


@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_maps(cli, teacher, map):
    path = teacher.parent / "student.onnx"
    code, out, _ = cli("widen", teacher, "-o", path, "--factor", "1.5", "--map", map, "--spread", "0")
    assert code == 0
    assert map in out


def test_verify_equivalent_models(cli, teacher, student):
    code, out, err = cli("verify", teacher, student)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"equivalent in \d+ runs on CPU: [^\n]+\n", out)


def test_samples_are_the_least_number_of_runs(cli, teacher, student, monkeypatch):
    monkeypatch.setattr(sys.modules["onnx_net2net.proof.verify"], "QUICK_SECONDS", 0)
    assert "equivalent in 3 runs" in cli("verify", teacher, student).out
    assert "equivalent in 5 runs" in cli("verify", teacher, student, "--samples", "5").out


def test_verify_as_json(cli, teacher, student):
    code, out, err = cli("verify", teacher, student, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    keys = {"equivalent", "provider", "runs", "bindings", "outputs", "diverges_at", "unmoved", "departure"}
    assert set(record) == keys
    assert (record["equivalent"], record["diverges_at"]) == (True, None)
    keys = {"name", "max_abs", "max_rel", "noise", "tolerance", "ratio", "different_fraction"}
    assert [set(output) for output in record["outputs"]] == [keys]


@pytest.mark.parametrize(
    ("weight", "place", "tensor"),
    [
        ("fc1.weight", (3, 5), "/fc1/Gemm_output_0"),
        ("fc2.weight", (slice(None), 6), "/fc2/Gemm_output_0"),
        ("fc2.weight", (slice(None), 190), "/fc2/Gemm_output_0"),
        ("fc3.weight", (3, 90), "logits"),
        ("fc3.bias", 3, "logits"),
    ],
    ids=str,
)
def test_verify_names_the_first_tensor_that_differs_also_where_it_has_grown(
    cli, teacher, student, weight, place, tensor
):
    other = changed(student, weight, place, 0.5, teacher.parent / "other.onnx")
    code, out, err = cli("verify", teacher, other)
    assert (code, err) == (1, "")
    assert re.fullmatch(rf"not equivalent in \d+ runs [^\n]+the first tensor to differ is '{tensor}'\n", out)
    assert json.loads(cli("verify", teacher, other, "--json").out)["diverges_at"] == tensor


def test_verify_finds_the_layer_in_a_widened_network_of_branches(cli, tmp_path):
    source, wide = MODELS / "digits_inception_bn.onnx", tmp_path / "wide.onnx"
    assert cli("widen", source, "-o", wide, "--factor", "1.37").code == 0
    other = changed(wide, "inception4a.branch3x3_2.conv.weight", (3, 5, 1, 1), 2.0, tmp_path / "other.onnx")
    code, out, _ = cli("verify", source, other)
    assert code == 1
    assert "differ is '/inception4a/branch3x3_2/conv/Conv_output_0'" in out


def test_verify_with_tolerances(cli, teacher, student):
    other = changed(student, "fc3.bias", 3, 1e-3, teacher.parent / "other.onnx")
    assert cli("verify", teacher, other).code == 1
    assert cli("verify", teacher, other, "--atol", "1e-2").code == 0
    assert cli("verify", teacher, other, "--rtol", "1e-9").code == 1


def test_verify_on_the_users_own_inputs(cli, teacher, student):
    data = teacher.parent / "inputs.npz"
    with np.load(MODELS / "digits_test.npz") as arrays:
        np.savez(data, image=arrays["image"][:20])
    assert "equivalent in 1 runs" in cli("verify", teacher, student, "--data", data).out
    assert cli("widen", teacher, "-o", student, "--factor", "1.5", "--data", data).code == 0


def test_verify_of_other_networks(cli, teacher, tmp_path):
    assert cli("verify", teacher, MODELS / "digits_resnet.onnx").code == 1
    onnx.save(net("(float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }"), tmp_path / "relu.onnx")
    assert_refused(cli("verify", teacher, tmp_path / "relu.onnx"), 1, "inputs are")


@pytest.mark.parametrize("command", ["inspect", "widen", "verify"])
def test_help_has_an_example(cli, command):
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    example = out[out.index("example:") :]
    assert f"onnx-net2net {command} teacher.onnx" in example


@pytest.mark.parametrize("command", ["widen", "verify"])
def test_help_tells_the_defaults_that_there_are(cli, command):
    text = " ".join(cli(command, "--help").out.split())
    assert not re.search(r"\(default: (None|\[\]|False|True|==SUPPRESS==)\)", text)
    assert "inputs (default: 3 or so)" in text
    assert text.count("(default: from the teacher's noise)") == 2


def test_help_lists_the_commands(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(command in out for command in ("inspect", "widen", "verify"))
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", cli("--version").out)


def test_the_example_of_widen_works_as_printed(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.onnx").write_bytes((MODELS / "digits_resnet.onnx").read_bytes())
    example = " ".join(cli("widen", "--help").out.partition("example:")[2].split())
    arguments = [word.strip("'") for word in example.split()[1:]]
    assert arguments[0] == "widen"
    assert cli(*arguments).code == 0
    assert (tmp_path / "student.onnx").exists()


def test_progress_is_shown_on_a_terminal_only_and_never_on_stdout(cli, teacher, monkeypatch):
    path = teacher.parent / "student.onnx"
    arguments = ("widen", teacher, "-o", path, "--factor", "1.5", "--json")
    assert cli(*arguments).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = cli(*arguments)
    assert code == 0
    assert json.loads(out)["exact"]
    assert err != ""


# --- Bad models ----------------------------------------------------------------------------------------------


def good():
    text = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    return net(text, up=draw(8, 64), down=draw(64, 4))


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


# --- Bad options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--factor", "0.5"], "the factor must be a number of at least 1, not 0.5"),
        (["--factor", "-2"], "at least 1"),
        (["--factor", "nan"], "at least 1, not nan"),
        (["--factor", "inf"], "at least 1, not inf"),
        ([], "give a factor or sizes"),
        (["--only", "fc1"], "give a factor or sizes"),
        (["--factor", "2", "--only", "fc9"], "no dim is named 'fc9'; near it are .*fc1"),
        (["--set", "fcl=150"], "no dim is named 'fcl'; near it are .*fc1"),
        (["--set", "layer3.*=2x"], "no dim is named 'layer3.*'; near it are fc1, fc2"),
        (["--set", "FC1=150"], "no dim is named 'FC1'; near it are .*fc1"),
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
    result = cli("widen", teacher, "-o", path, *options)
    assert_refused(result, 2, words)
    assert result.out == ""
    assert contents(teacher.parent) == before


def test_too_little_memory_is_one_line(cli, teacher, monkeypatch):
    def exhaust(*_, **__):
        raise MemoryError

    before = contents(teacher.parent)
    for module, name in (("widen.widen", "rewrite"), ("verify", "verify")):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[f"onnx_net2net.operations.{module}"], name, exhaust)
            result = cli("widen", teacher, "-o", teacher.parent / "student.onnx", "--factor", "2")
        assert_refused(result, 2, "not enough memory")
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
    result = cli("widen", teacher, "-o", path, *options)
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
    result = cli("widen", teacher, "-o", path, "--factor", "1.5", "--atol", "0", "--rtol", "0")
    assert_refused(result, 1, r"not equivalent in \d+ runs")
    assert contents(teacher.parent) == before
    assert "wrote" not in result.out
    result = cli("widen", teacher, "-o", path, "--factor", "1.5", "--atol", "0", "--json")
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "0"], "samples must be at least 1, not 0"),
        (["--samples", "-3"], "samples must be at least 1, not -3"),
        (["--seed", "-1"], "the seed must be at least 0"),
        (["--rtol", "nan"], "rtol must be a number of at least 0, not nan"),
        (["--atol", "nan"], "atol must be a number of at least 0, not nan"),
        (["--atol=-1e-3"], "atol must be a number of at least 0"),
        (["--rtol", "inf"], "rtol must be a number of at least 0"),
        (["--data", "none.npz"], "none.npz.*No such file"),
        (["--provider", "abacus"], "no provider 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_verify(cli, options, words):
    result = cli("verify", MLP, MODELS / "digits_resnet.onnx", *options)
    assert_refused(result, 2, words)
    assert result.out == ""


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime has CUDA")
def test_cuda_that_is_not_there_is_no_silent_fallback(cli, teacher):
    words = r"no CUDAExecutionProvider; pip install 'onnx-net2net\[gpu\]'"
    assert_refused(cli("verify", MLP, MLP, "--provider", "cuda"), 2, words)
    before = contents(teacher.parent)
    arguments = ("widen", teacher, "-o", teacher.parent / "s.onnx", "--factor", "2", "--provider", "cuda")
    assert_refused(cli(*arguments), 2, words)
    assert contents(teacher.parent) == before


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="onnxruntime has no CUDA")
def test_cuda(cli, teacher):
    path = teacher.parent / "student.onnx"
    assert "on CUDA" in cli("widen", teacher, "-o", path, "--factor", "1.5", "--provider", "cuda").out
    assert cli("verify", teacher, path, "--provider", "cuda").code == 0


USAGE = {
    (): "the following arguments are required: COMMAND",
    ("grow", "teacher.onnx"): "invalid choice: 'grow'",
    ("inspect",): "the following arguments are required: MODEL",
    ("widen", "teacher.onnx", "--factor", "2"): "the following arguments are required: -o",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "twice"): "--factor: invalid float value: 'twice'",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--map", "copy"): "invalid choice: 'copy'.*replicate",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--seed", "1.5"): "--seed: invalid int value: '1.5'",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--depth", "2"): "unrecognized arguments: --depth 2",
    ("verify", "teacher.onnx", "teacher.onnx", "--atol", "small"): "--atol: invalid float value: 'small'",
}


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage_errors_are_one_line_that_says_what_is_wrong(cli, teacher, monkeypatch, arguments):
    monkeypatch.chdir(teacher.parent)
    result = cli(*arguments)
    assert_refused(result, 2, USAGE[arguments])
    assert result.out == ""
    assert re.search(r" \(see onnx-net2net( inspect| widen| verify)? --help\)$", result.err)
    assert [path.name for path in teacher.parent.iterdir()] == ["teacher.onnx"]


# --- Bad destinations ----------------------------------------------------------------------------------------


def itself(path):
    return path


def itself_otherwise_spelled(path):
    return path.parent / "sub" / ".." / path.name


def itself_relative(path):
    return Path(os.path.relpath(path))


def link_to_it(path):
    (path.parent / "link.onnx").symlink_to(path)
    return path.parent / "link.onnx"


def hard_link_to_it(path):
    os.link(path, path.parent / "link.onnx")
    return path.parent / "link.onnx"


def through_a_linked_folder(path):
    (path.parent / "folder").symlink_to(path.parent)
    return path.parent / "folder" / path.name


def in_a_missing_folder(path):
    return path.parent / "none" / "student.onnx"


def in_a_file_as_folder(path):
    return path / "student.onnx"


def a_folder_itself(path):
    return path.parent / "sub"


def in_a_folder_that_takes_no_files(path):
    if not Path("/proc/version").exists():
        pytest.skip("there is no /proc")
    return Path("/proc/student.onnx")


def in_a_write_protected_folder(path):
    folder = path.parent / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    return folder / "student.onnx"


DESTINATIONS = {
    itself: "the model reads",
    itself_otherwise_spelled: "the model reads",
    itself_relative: "the model reads",
    link_to_it: "the model reads",
    hard_link_to_it: "the model reads",
    through_a_linked_folder: "the model reads",
    in_a_missing_folder: "the folder .*none does not exist",
    in_a_file_as_folder: "the folder .*teacher.onnx does not exist",
    a_folder_itself: "it is a folder",
    in_a_folder_that_takes_no_files: "/proc/student.onnx: ",
    in_a_write_protected_folder: "cannot write .*Permission denied",
}


@pytest.mark.parametrize("place", DESTINATIONS, ids=lambda place: place.__name__)
def test_bad_destinations(cli, teacher, place):
    (teacher.parent / "sub").mkdir()
    path = place(teacher)
    before = contents(teacher.parent)
    for options in ((), ("--no-verify",), ("--json",)):
        result = cli("widen", teacher, "-o", path, "--factor", "2", *options)
        assert_refused(result, 2, f"cannot write .*{DESTINATIONS[place]}")
        assert result.out == "" or "takes_no_files" in place.__name__  # which shows when the file is made
        assert contents(teacher.parent) == before


def test_the_teachers_data_file_is_no_destination(cli, tmp_path):
    source = tmp_path / "teacher.onnx"
    onnx.save(onnx.load(MLP), source, save_as_external_data=True, location="weights", size_threshold=100)
    before = contents(tmp_path)
    result = cli("widen", source, "-o", tmp_path / "weights", "--factor", "2")
    assert_refused(result, 2, "cannot write .*weights: the model reads")
    assert contents(tmp_path) == before


# --- Names that a terminal could misread ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attn[red]", "attn[/b]", "[bold]attn", "häuser/größe"])
def test_names_are_printed_as_they_are(cli, tmp_path, name):
    proto = good()
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = f"{name}.weight"
    path = tmp_path / "teacher[red].onnx"
    onnx.save(proto, path)
    out = cli("inspect", path).out
    assert name in out
    assert "teacher[red].onnx" in out
    out = cli("widen", path, "-o", tmp_path / "stu[dent].onnx", "--factor", "2").out
    assert name in out
    assert "stu[dent].onnx" in out.splitlines()[-1]


def test_long_lines_are_not_wrapped(cli, teacher):
    path = teacher.parent / ("long" * 40) / "student.onnx"
    path.parent.mkdir()
    lines = cli("widen", teacher, "-o", path, "--factor", "1.5").out.splitlines()
    assert lines[-1].startswith(f"wrote {path} in ")
    assert lines[-2].startswith("equivalent in ")
    assert lines[-2].endswith(")")


# --- The installed script ------------------------------------------------------------------------------------


def spawn(*arguments, command=(SCRIPT,)):
    done = subprocess.run([*command, *map(os.fspath, arguments)], capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((SCRIPT,), marks=pytest.mark.skipif(not SCRIPT.exists(), reason="not installed"), id="script"),
        pytest.param((sys.executable, "-m", "onnx_net2net"), id="module"),
    ],
)
def test_the_command_itself(tmp_path, command):
    path = tmp_path / "student.onnx"
    code, out, err = spawn("widen", MLP, "-o", path, "--factor", "1.5", command=command)
    assert (code, err) == (0, "")
    assert re.search(r"^equivalent in \d+ runs", out, re.MULTILINE)
    assert path.exists()
    assert_refused(
        spawn("widen", MLP, "-o", tmp_path / "s.onnx", "--set", "fc1=150", "--multiple-of", "8", command=command),
        3,
        "exactly",
    )


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", MLP), 0),
        (("inspect", MLP, "--json"), 0),
        (("widen", MLP, "-o", "student.onnx", "--factor", "1.5"), 0),
        (("verify", MLP, MODELS / "digits_resnet.onnx"), 1),
        (("widen", "--help"), 0),
    ],
    ids=lambda value: " ".join(map(os.fspath, value[::2])) if isinstance(value, tuple) else "",
)
def test_a_reader_that_leaves_early_ends_no_work(tmp_path, arguments, code, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "onnx_net2net", *arguments]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, timeout=120, cwd=tmp_path, env=environment, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")
    assert (tmp_path / "student.onnx").exists() == ("-o" in arguments)


def test_an_interrupt_leaves_nothing_behind(cli, teacher, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["onnx_net2net.operations.verify"], "verify", interrupt)
    before = contents(teacher.parent)
    code, _, err = cli("widen", teacher, "-o", teacher.parent / "student.onnx", "--factor", "1.5")
    assert (code, err) == (130, "onnx-net2net: interrupted, nothing written\n")
    assert contents(teacher.parent) == before


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


def test_half_precision(cli, tmp_path):
    text = "(float16[N, 8] x) => (float16[N, 4] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    proto = net(text, up=draw(8, 16).astype(np.float16), down=draw(16, 4).astype(np.float16))
    onnx.save(proto, tmp_path / "m.onnx")
    assert cli("widen", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--factor", "1.5").code == 0
    assert onnx.load(tmp_path / "s.onnx").graph.initializer[0].data_type == TensorProto.FLOAT16
