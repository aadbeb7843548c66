"""A tiny checkpoint grows, and `from_pretrained` computes what its teacher does; bad ones are refused in one line."""

import contextlib
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from checkpoint_table import import_torchvision  # noqa: E402

from onnx_net2net import BadInputError, NotEquivalentError  # noqa: E402
from onnx_net2net.cli.main import main  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def transformers():
    with contextlib.suppress(ImportError):
        import_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """A Llama of two layers in bfloat16 whose embedding is its head, in several shards, with another file beside."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, tie_word_embeddings=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoints") / "teacher"
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # so that all of it matters to the output
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="8KB")
    (path / "tokenizer_config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def teacher(folder):
    from onnx_net2net.framework.huggingface.teacher import open_teacher

    opened = open_teacher(folder)
    assert opened.graph.proto.graph.node
    return opened


def logits(transformers, path):
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(ids).logits


REQUESTS = {
    "twice as wide": {"factor": 2.0}, "half as wide again": {"factor": 1.5},
    "both ways": {"factor": 2.0, "depth": "2x"}, "behind the last": {"depth": "1.5x", "append": True},
    "one role": {"sizes": {"ffn": "56"}}, "more tokens": {"factor": 1.5, "sizes": {"vocabulary": "+5"}},
}  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_student_is_loaded_by_its_class_and_computes_the_same(transformers, teacher, folder, tmp_path, request_):
    from onnx_net2net.framework.huggingface.grow import Request, grow_checkpoint

    grown = grow_checkpoint(teacher, tmp_path / "out", Request(**request_))
    assert grown.proof is not None
    assert grown.proof.is_equivalent
    before, after = logits(transformers, folder), logits(transformers, tmp_path / "out")
    after = after[..., : before.shape[-1]]
    assert float((after - before).abs().max()) <= grown.proof.tolerance < 0.2 * float(before.abs().max())
    if request_.get("factor") == 2.0:  # next to nothing is rounded to bfloat16
        assert grown.proof.tolerance < 3e-3 * float(before.abs().max())
    assert all(block.error <= block.tolerance for block in grown.proof.blocks)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    old = json.loads((folder / "config.json").read_text())
    assert {name for name in config if config[name] != old.get(name)} == set(grown.to_dict()["config"])
    assert all(tensor.parameter.dtype.name == "bfloat16" for tensor in grown.student.tensors)
    assert "lm_head.weight" not in {tensor.name for tensor in grown.student.tensors}
    assert (tmp_path / "out" / "tokenizer_config.json").exists()


def test_a_wrong_weight_is_found_and_nothing_is_written(teacher, tmp_path, monkeypatch):
    from onnx_net2net.framework.huggingface import grow as growing, parameters

    honest = parameters.StudentParameter.read

    def wrong(self):
        return lambda start, stop: changed(self, honest(self)(start, stop), start)

    def changed(self, values, start):
        values = np.array(values)
        if self.name == "model.layers.1.mlp.down_proj.weight" and not start:
            values[0] = values[1]
        return values

    monkeypatch.setattr(parameters.StudentParameter, "read", wrong)
    with pytest.raises(NotEquivalentError, match=r"NOT equivalent.*first to differ is model\.layers\.1"):
        growing.grow_checkpoint(teacher, tmp_path / "out", growing.Request(factor=2.0))
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote(transformers, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["grow", str(folder), "-o", str(out), "--factor", "2", "--depth", "2x"]) == 0
    told = capsys.readouterr().out
    assert "equivalent in float" in told
    assert f"wrote {out} in" in told
    sizes = sum(parameter.numel() for parameter in transformers.AutoModelForCausalLM.from_pretrained(out).parameters())
    assert f"{sizes:,}" in told


def test_the_command_plans_without_writing_and_refuses_in_one_line(transformers, folder, tmp_path, capsys):
    assert main(["grow", str(folder), "--factor", "2", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["hidden_size"] == [24, 48]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    for change, said in (
        ({"auto_map": {"AutoModel": "mine.Net"}}, "--trust-remote-code"),
        ({"hidden_size": 32}, "does not fit its config"),
        ({"architectures": ["NoSuchModel"]}, "NoSuchModel"),
        ({"num_hidden_layers": 3}, "it lacks"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change))
        assert main(["grow", str(copy), "-o", str(tmp_path / "out"), "--factor", "2"]) == BadInputError.exit_code
        error = capsys.readouterr().err.strip()
        assert said in error
        assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
