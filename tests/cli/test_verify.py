"""`verify`: what is printed of equal and of different models."""

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import MLP, MODELS, assert_refused, changed, contents, net


def test_verify_equivalent_models(cli, teacher, student):
    code, out, err = cli("verify", teacher, student)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"equivalent in \d+ runs on CPU: [^\n]+\n", out)


def test_samples_are_the_least_number_of_runs(cli, teacher, student, monkeypatch):
    monkeypatch.setattr("onnx_net2net.proof.cases.QUICK_SECONDS", 0)
    assert "equivalent in 3 runs" in cli("verify", teacher, student).out
    assert "equivalent in 5 runs" in cli("verify", teacher, student, "--samples", "5").out


def test_verify_as_json(cli, teacher, student):
    code, out, err = cli("verify", teacher, student, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    keys = {"equivalent", "provider", "runs", "bindings", "outputs", "diverges_at", "unmoved", "departure", "seconds"}
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
