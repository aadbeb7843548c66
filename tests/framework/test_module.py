"""A user's class is built, loaded strictly and compared with the teacher, as a model is."""

import json
import re
import sys

import numpy as np
import onnxruntime as ort
import pytest
from graphs import net

from onnx_net2net import BadInputError, NotEquivalentError, verify
from onnx_net2net.cli.main import main

torch = pytest.importorskip("torch")

from onnx_net2net.framework.module import ModuleRunner, build, load_strictly  # noqa: E402

CLASS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=16, bias=True, **options):
        super().__init__()
        self.up = torch.nn.Linear(8, width, bias=False)
        self.down = torch.nn.Linear(width, 4, bias=bias)
        self.options = options

    def forward(self, {arguments}):
        hidden = torch.relu(self.up({first}))
        out = self.down(hidden) + {rest}
        return {{"out": out, "caches": object()}} if self.options.get("mapping") else (out, [hidden])

def number():
    return 3

def broken():
    raise ValueError("no\\nweights")
"""


def draw(*shape):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a class, a teacher of width 16, and a wider state dict that computes the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "mine.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nets.py").write_text(CLASS.format(arguments="x, shift", first="x", rest="shift"))
    up, down, bias = draw(16, 8), draw(4, 16), draw(4)
    text = """(float[N, 8] x, float[N, 4] shift) => (float[N, 4] out, float[N, 16] hidden) {
        a = Gemm <transB = 1> (x, up) hidden = Relu(a) b = Gemm <transB = 1> (hidden, down, bias)
        out = Add(b, shift) }"""
    teacher = net(text, up=up, down=down, bias=bias)
    (tmp_path / "teacher.onnx").write_bytes(teacher.SerializeToString())
    state = {"up.weight": up, "down.weight": down, "down.bias": bias}
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "same.pt")
    state["down.bias"] = bias + 1e-3
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "other.pt")
    yield tmp_path
    for name in ("mine", "mine.nets"):
        sys.modules.pop(name, None)


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        return main(["verify", *map(str, arguments)]), *capsys.readouterr()

    return run


def test_a_module_that_computes_the_same_is_equivalent(project, cli):
    code, out, err = cli("teacher.onnx", "--module", "mine.nets:Net", "--state-dict", "same.pt", "--args", "[16]")
    assert (code, err) == (0, "")
    assert out.startswith("equivalent in ")
    code, out, _ = cli("teacher.onnx", "--module", "mine.nets:Net", "--state-dict", "same.pt", "--json")
    assert code == 0
    assert [report["name"] for report in json.loads(out)["outputs"]] == ["out", "hidden"]


def test_a_module_that_computes_something_else_is_not(project, cli):
    code, out, _ = cli("teacher.onnx", "--module", "mine.nets:Net", "--state-dict", "other.pt")
    assert code == 1
    assert out.startswith("not equivalent in ")
    assert "output 'out' is off by 0.001" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--module", "mine.nets"], 2, "write package.module:factory"),
        (["--module", "mine.nots:Net"], 2, "mine.nots:Net cannot be imported: No module named 'mine.nots'"),
        (["--module", "mine.nets:Not"], 2, "cannot be imported: module 'mine.nets' has no attribute 'Not'"),
        (["--module", "mine.nets:number"], 2, "makes a int, not a torch.nn.Module"),
        (["--module", "mine.nets:broken"], 2, "cannot be built: ValueError: no weights"),
        (["--module", "mine.nets:Net", "--args", "{width: 3}"], 2, "write a JSON object or list"),
        (["--module", "mine.nets:Net", "--args", "3"], 2, "write a JSON object or list"),
        (["--module", "mine.nets:Net", "--state-dict", "none.pt"], 2, "there is no such file"),
        (["student.onnx", "--module", "mine.nets:Net"], 2, "give a second model or --module, and not both"),
        ([], 2, "give a second model or --module"),
        (["--module", "mine.nets:Net", "--args", '{"width": 20}'], 1,
         r"same.pt does not fit the class: it is where up.weight is \[16, 8\], in the class \[20, 8\], down.weight is"),
        (["--module", "mine.nets:Net", "--args", '{"bias": false}'], 1, "it is with the unknown down.bias"),
        (["--module", "mine.nets:Net", "--args", '{"mapping": true}'], 1, "returns 1 tensors, the teacher 2"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_said_in_one_line(project, cli, arguments, code, words):
    if "--state-dict" not in arguments:
        arguments = [*arguments, "--state-dict", "same.pt"]
    found, out, err = cli("teacher.onnx", *arguments)
    assert (found, out) == (code, "")
    assert err.count("\n") == 1
    assert re.search(words, err), err


def test_without_a_state_dict_there_is_nothing_to_verify(project, cli):
    code, _, err = cli("teacher.onnx", "--module", "mine.nets:Net")
    assert code == 2
    assert "--state-dict student.safetensors" in err


def test_without_torch_the_line_says_what_to_install(project, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = cli("teacher.onnx", "--module", "mine.nets:Net", "--state-dict", "same.pt")
    assert code == 2
    assert "--module needs PyTorch: pip install torch" in err


def test_inputs_go_by_name_where_the_class_has_them_all(project):
    (project / "mine" / "nets.py").write_text(CLASS.format(arguments="mask=None, shift=None, x=None",
                                                           first="x", rest="shift"))  # fmt: skip
    module = build("mine.nets:Net")
    load_strictly(module, "same.pt")
    assert verify("teacher.onnx", ModuleRunner(module, "teacher.onnx")).equivalent


def test_inputs_go_by_position_where_the_class_has_other_names(project):
    (project / "mine" / "nets.py").write_text(CLASS.format(arguments="image, bias", first="image", rest="bias"))
    module = build("mine.nets:Net", {"width": 16})
    load_strictly(module, "same.pt")
    verify("teacher.onnx", ModuleRunner(module, "teacher.onnx")).raise_if_different()


def test_a_module_that_does_not_run_is_no_student(project):
    (project / "mine" / "nets.py").write_text(CLASS.format(arguments="x", first="x", rest="1"))
    module = build("mine.nets:Net")
    with pytest.raises(NotEquivalentError, match=r"the student does not run: .* takes 2 positional arguments"):
        verify("teacher.onnx", ModuleRunner(module, "teacher.onnx"))


def test_dropout_and_batch_statistics_are_off():
    class Noisy(torch.nn.Sequential):
        pass

    module = Noisy(torch.nn.Linear(8, 4, bias=False), torch.nn.BatchNorm1d(4, eps=0.0), torch.nn.Dropout(0.9))
    weight = module[0].weight.detach().numpy()
    teacher = net("(float[N, 8] x) => (float[N, 4] y) { y = Gemm <transB = 1> (x, w) }", w=weight)
    verify(teacher, ModuleRunner(module.train(), teacher)).raise_if_different()


def test_halves_and_bfloat16_come_back_as_they_are():
    for kind, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        teacher = net(f"({name}[N, 8] x) => ({name}[N, 8] y) {{ y = Identity(x) }}")

        class Copy(torch.nn.Module):
            def forward(self, x):
                assert x.dtype == kind  # noqa: B023
                return x.clone()

        verify(teacher, ModuleRunner(Copy(), teacher)).raise_if_different()


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA")
def test_a_module_runs_on_a_gpu(project, cli):
    options = ["--module", "mine.nets:Net", "--provider", "cuda", "--state-dict"]
    code, out, _ = cli("teacher.onnx", *options, "same.pt")
    assert code == 0
    assert "runs on CUDA" in out
    assert cli("teacher.onnx", *options, "other.pt")[0] == 1


def test_a_file_that_is_no_state_dict_is_bad_input(project):
    (project / "broken.pt").write_bytes(b"no")
    with pytest.raises(BadInputError, match=r"cannot read broken\.pt"):
        load_strictly(build("mine.nets:Net"), "broken.pt")
