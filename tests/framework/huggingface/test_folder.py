"""What a checkpoint's folder says of its tensors, and that a broken one is refused in one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from onnx_net2net import BadInputError
from onnx_net2net.framework.huggingface.folder import read_folder

VALUES = {"a.weight": np.arange(12, dtype=np.float32).reshape(4, 3), "b.weight": np.ones(5, np.float16)}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in two shards, with a tokenizer beside."""
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    (tmp_path / "tokenizer.json").write_text("{}")
    for number, (name, values) in enumerate(VALUES.items(), 1):
        save_file({name: values}, tmp_path / f"model-{number}.safetensors")
    write_index(tmp_path, {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_tensors_are_found_in_their_shards_and_read_by_rows(folder):
    found = read_folder(folder)
    assert found.config == {"hidden_size": 3}
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"a.weight": (4, 3), "b.weight": (5,)}
    np.testing.assert_array_equal(found.tensors["a.weight"].part(1, 3), VALUES["a.weight"][1:3])
    assert found.tensors["b.weight"].dtype == np.float16
    assert [path.name for path in found.others] == ["tokenizer.json"]
    assert found.nbytes == 12 * 4 + 5 * 2


def test_a_single_file_needs_no_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file(VALUES, folder / "model.safetensors")
    assert list(read_folder(folder).tensors) == list(VALUES)


def test_shards_without_an_index_and_single_files_are_read(folder):
    listed = read_folder(folder / "model.safetensors.index.json")
    one = read_folder(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    assert list(listed.tensors) == list(read_folder(folder).tensors) == list(VALUES)
    assert list(one.tensors) == ["a.weight"]
    assert not one.others
    assert not one.config


def missing(folder):
    (folder / "model-2.safetensors").unlink()


def short(folder):
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def outside(folder):
    write_index(folder, {"a.weight": "../model-1.safetensors"})


def absolute(folder):
    write_index(folder, {"a.weight": str(folder.parent / "x.safetensors")})


def elsewhere(folder):
    write_index(folder, {"c.weight": "model-1.safetensors"})


def no_map(folder):
    (folder / "model.safetensors.index.json").write_text("[]")


def no_json(folder):
    (folder / "config.json").write_text("{")


def nothing(folder):
    for path in folder.glob("model*"):
        path.unlink()


def twice(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file(VALUES, folder / "model-3.safetensors")


FAULTS = {
    missing: "model-2.safetensors is missing", short: "model-1.safetensors", outside: "not a path inside",
    absolute: "not a path inside", elsewhere: "does not have c.weight", no_map: "is no object",
    no_json: "config.json", nothing: "is no checkpoint",
    twice: "both have",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_broken_folder_is_refused_in_one_line(folder, fault):
    fault(folder)
    with pytest.raises(BadInputError, match=FAULTS[fault]) as error:
        read_folder(folder)
    assert "\n" not in str(error.value)
