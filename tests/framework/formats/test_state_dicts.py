"""State dicts are read and written as the frameworks do; broken ones are told in one line."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from onnx_net2net import BadInputError
from onnx_net2net.framework.formats.state_dicts import read, write

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.arange(4, dtype=np.float16),
    "a.brain": np.arange(5).astype(ml_dtypes.bfloat16),
    "a.steps": np.array(7),
    "a.mask": np.array([True, False]),
    "a.empty": np.zeros((0, 3), np.float32),
}


NEEDED = {".pt": "torch", ".weights.h5": "h5py", ".msgpack": "msgpack", "": "orbax.checkpoint"}
"""What the formats need beside what is always there."""


def written(path, arrays=ARRAYS):
    write(path, arrays, arrays.__getitem__)
    return read(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", *NEEDED])
def test_all_types_come_back(tmp_path, suffix):
    if suffix in NEEDED:
        pytest.importorskip(NEEDED[suffix])
    # npz has no bfloat16, and Orbax no arrays without elements.
    left = {".npz": "a.brain", "": "a.empty"}.get(suffix)
    arrays = {name: array for name, array in ARRAYS.items() if name != left}
    found = written(tmp_path / f"x{suffix}", arrays)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name].read(), array)


def test_torch_reads_what_was_written(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    written(tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["a.brain"].dtype == torch.bfloat16
    assert loaded["a.brain"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {"model": d}])
def test_wrappers_are_opened(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save(wrap({"a": weight, "b": weight}), tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    assert list(found) == ["a", "b"]
    assert found["a"].shared == found["b"].shared
    np.testing.assert_array_equal(found["a"].read(), weight.numpy())


def test_versions_of_classes_are_kept(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.BatchNorm1d(3).state_dict(), tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    write(tmp_path / "y.pt", found, lambda name: found[name].read(), kept=found.kept)
    assert torch.load(tmp_path / "y.pt")._metadata == torch.nn.BatchNorm1d(3).state_dict()._metadata


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "x.pt")
    with pytest.raises(BadInputError, match="cannot read"):
        read(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_broken_files_are_told(tmp_path):
    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    for broken in (b"", b"abc", content[:-10], b"\xff" * 8 + content[8:]):
        (tmp_path / "broken.safetensors").write_bytes(broken)
        with pytest.raises(BadInputError, match="cannot read"):
            read(tmp_path / "broken.safetensors")
    for name, reason in (("missing.safetensors", "no such file"), ("x.npz", "no such file")):
        with pytest.raises(BadInputError, match=reason):
            read(tmp_path / name)
    (tmp_path / "x.npy").write_bytes(b"PK")
    with pytest.raises(BadInputError, match="state dicts are"):
        read(tmp_path / "x.npy")


def test_nothing_is_left_of_what_could_not_be_written(tmp_path):
    def fail(name):
        raise OSError("no")

    with pytest.raises(BadInputError, match="cannot write"):
        write(tmp_path / "x.safetensors", ARRAYS, fail)
    assert not list(tmp_path.iterdir())


def test_what_npz_does_not_have_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"a\.brain is bfloat16"):
        written(tmp_path / "x.npz")
    for array in (np.array("text"), np.array(1j)):
        np.savez(tmp_path / "y.npz", w=array)
        with pytest.raises(BadInputError, match="which is not supported"):
            read(tmp_path / "y.npz")
    assert list(written(tmp_path / "file.npz", {"file": np.ones(2)})) == ["file"]
    np.savez(tmp_path / "y.npz", w=np.array([{}]))
    with pytest.raises(BadInputError, match="no npz of plain arrays"):
        read(tmp_path / "y.npz")


def test_a_folder_takes_the_place_of_none_other(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("")
    with pytest.raises(BadInputError, match="there is something of this name"):
        written(tmp_path / "x")
    with pytest.raises(BadInputError, match="no folder of Orbax"):
        read(tmp_path / "x")
    with pytest.raises(BadInputError, match="together with"):
        write(tmp_path / "y", ARRAYS, ARRAYS.__getitem__, beside={tmp_path / "z.pt": lambda path: path.touch()})
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "mine"]
