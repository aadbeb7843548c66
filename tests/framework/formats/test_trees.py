"""Trees of Flax come back as they were, and Flax reads what is written; hostile files are refused in one line."""

import numpy as np
import pytest

from onnx_net2net import BadInputError
from onnx_net2net.framework.formats import trees
from onnx_net2net.framework.formats.state_dicts import read, write

msgpack = pytest.importorskip("msgpack")

TREE = {
    "params": {"layers": [{"kernel": np.ones((2, 3), np.float32)}, {"kernel": np.zeros(3, np.float32)}], "none": {}},
    "step": 7,
    "name": "x",
}


def arrays(found):
    return {name: stored.read() for name, stored in found.items()}


def same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other) and getattr(one, "dtype", 0) == getattr(other, "dtype", 0)


def test_a_tree_is_what_it_was():
    found = trees.from_tree(TREE, "here")
    assert list(found) == ["params/layers/0/kernel", "params/layers/1/kernel"]
    assert same(trees.to_tree(arrays(found), found.kept), TREE)


def test_names_make_a_tree_where_none_is_known():
    assert trees.to_tree({"a/b": 1, "a/c": 2}, None) == {"a": {"b": 1, "c": 2}}
    with pytest.raises(BadInputError, match="inside of another"):
        trees.to_tree({"a": np.ones(1), "a/b": np.ones(1)}, None)


def test_flax_reads_what_is_written(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    tree = {"params": {0: {"kernel": np.ones((2, 3), np.float32)}}, "count": np.float32(3), "step": 7}
    (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    found = read(tmp_path / "x.msgpack")
    assert list(found) == ["params/0/kernel"]
    write(tmp_path / "y.msgpack", found, lambda name: found[name].read(), kept=found.kept)
    assert same(serialization.msgpack_restore((tmp_path / "y.msgpack").read_bytes()), tree)


def test_large_arrays_are_cut_as_flax_does(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "_MOST", 64)
    values = np.arange(60, dtype=np.float32).reshape(6, 10)
    write(tmp_path / "x.msgpack", ["w"], lambda _: values)
    np.testing.assert_array_equal(read(tmp_path / "x.msgpack")["w"].read(), values)
    tree = msgpack.unpackb((tmp_path / "x.msgpack").read_bytes())
    assert len(tree["w"]["chunks"]) == 4


def extension(shape, kind, content):
    return msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb((shape, kind, content)))})


def nested(depth):
    node = {"w": 1}
    for _ in range(depth):
        node = {"a": node}
    return msgpack.packb(node)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xc1", b"\x81\xa1w", msgpack.packb([1, 2]), msgpack.packb({"w": 1}), nested(200),
        extension((2, 2), "float32", b"abc"), extension((2,), "object", bytes(16)),
        extension((1 << 40,), "float32", b""),
        extension((2,), "nonsense", bytes(8)), msgpack.packb({"w": msgpack.ExtType(1, b"\xc1")}),
        msgpack.packb({"__msgpack_chunked_array__": True}),
    ],
)  # fmt: skip
def test_broken_files_are_told(tmp_path, content):
    (tmp_path / "x.msgpack").write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read(tmp_path / "x.msgpack")
    assert "x.msgpack" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_orbax_restores_what_is_written(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.StandardCheckpointer() as writer:
        writer.save(tmp_path / "x", {"params": TREE["params"], "step": 7})
    found = read(tmp_path / "x")
    write(tmp_path / "y", found, lambda name: found[name].read() + 1, kept=found.kept)
    with orbax.PyTreeCheckpointer() as reader:
        tree = reader.restore(tmp_path / "y")
    assert tree["step"] == 7
    np.testing.assert_array_equal(tree["params"]["layers"][0]["kernel"], np.full((2, 3), 2))


def test_a_broken_folder_is_told(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "_METADATA").write_text("{")
    with pytest.raises(BadInputError, match="cannot read"):
        read(tmp_path / "x")
