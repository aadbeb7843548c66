"""Keras' files are read without Keras; what a hostile one can do is refused in one line."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest

from onnx_net2net import BadInputError
from onnx_net2net.framework.formats.state_dicts import read, write

h5py = pytest.importorskip("h5py")

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def file_of(path, make):
    with h5py.File(path, "w") as file:
        make(file)
    return path


def dense(file):
    group = file.create_group("layers/dense/vars")
    group.attrs["name"] = "dense_7"
    group["0"] = KERNEL
    file.create_group("layers/relu/vars").attrs["name"] = "relu"


def test_groups_and_their_names_are_kept(tmp_path):
    found = read(file_of(tmp_path / "x.weights.h5", dense))
    assert list(found) == ["layers/dense/vars/0"]
    write(tmp_path / "y.weights.h5", found, lambda name: found[name].read() + 1, kept=found.kept)
    with h5py.File(tmp_path / "y.weights.h5") as file:
        assert file["layers/dense/vars"].attrs["name"] == "dense_7"
        assert file["layers/relu/vars"].attrs["name"] == "relu"
        np.testing.assert_array_equal(file["layers/dense/vars/0"][()], KERNEL + 1)


def test_bfloat16_is_as_keras_marks_it(tmp_path):
    values = np.arange(4).astype(ml_dtypes.bfloat16)
    write(tmp_path / "x.h5", ["w"], lambda _: values)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["w"].attrs["dtype"] == "bfloat16"
    np.testing.assert_array_equal(read(tmp_path / "x.h5")["w"].read(), values)


def test_the_state_of_an_optimizer_is_left_out(tmp_path):
    def make(file):
        dense(file)
        file["optimizer/vars/0"] = np.zeros(3)

    found = read(file_of(tmp_path / "x.h5", make))
    assert list(found) == ["layers/dense/vars/0"]
    assert "optimizer" in found.notes[0]


def soft(file):
    dense(file)
    file["w"] = h5py.SoftLink("/layers/dense/vars/0")


def outside(file):
    file["w"] = h5py.ExternalLink("/etc/passwd", "/")


def circle(file):
    dense(file)
    file["layers/dense/again"] = file["layers"]


def elsewhere(file):
    file.create_dataset("w", (4,), np.float32, external=[("other.bin", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
    file.create_virtual_dataset("w", layout)


def bomb(file):
    file.create_dataset("w", (1 << 32,), np.float32, chunks=(1 << 20,), compression="gzip")


def text(file):
    file["w"] = "text"


HOSTILE = {
    "soft": (soft, "is a link"), "outside": (outside, "is a link"), "circle": (circle, "inside itself"),
    "elsewhere": (elsewhere, "lies in other files"), "virtual": (virtual, "lies in other files"),
    "bomb": (bomb, "swells to"), "text": (text, "not supported"), "nothing": (lambda file: None, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused(tmp_path, name):
    make, reason = HOSTILE[name]
    with pytest.raises(BadInputError, match=reason) as caught:
        read(file_of(tmp_path / "x.h5", make))
    assert "\n" not in str(caught.value)


def test_broken_files_are_told(tmp_path):
    content = file_of(tmp_path / "x.h5", dense).read_bytes()
    for broken in (b"", b"abc", content[:100], content[:-100]):
        (tmp_path / "y.h5").write_bytes(broken)
        with pytest.raises(BadInputError, match="cannot read"):
            read(tmp_path / "y.h5")


@pytest.mark.parametrize("name", ["/a", "a//b", "a/../b", "a\0b", ""])
def test_names_that_are_no_paths_are_refused(tmp_path, name):
    with pytest.raises(BadInputError, match="no path"):
        write(tmp_path / "x.h5", [name], lambda _: KERNEL)
    assert not list(tmp_path.iterdir())


# --- Archives ----------------------------------------------------------------------------------------------------


def archive_of(path, config, members=()):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        dense(file)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", content.getvalue())
        archive.writestr("config.json", json.dumps(config))
        for name, data in members:
            archive.writestr(name, data)
    return path


def model(*layers):
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


def layer(kind, **config):
    return {"module": "keras.layers", "class_name": kind, "config": config, "build_config": {"input_shape": [None, 2]}}


def test_the_config_gets_the_sizes_of_the_tensors(tmp_path):
    config = model(layer("Dense", name="dense_7", units=3), layer("ReLU", name="relu"))
    found = read(archive_of(tmp_path / "x.keras", config, [("metadata.json", b'{"keras_version": "3"}')]))
    write(tmp_path / "y.keras", found, lambda name: np.zeros((2, 5), np.float32), kept=found.kept)
    with zipfile.ZipFile(tmp_path / "y.keras") as archive:
        assert archive.read("metadata.json") == b'{"keras_version": "3"}'
        own = json.loads(archive.read("config.json"))["config"]["layers"]
    assert own[0]["config"]["units"] == 5
    assert "build_config" not in own[0]
    assert read(tmp_path / "y.keras")["layers/dense/vars/0"].shape == (2, 5)


def test_a_file_without_a_config_makes_no_archive(tmp_path):
    found = read(file_of(tmp_path / "x.weights.h5", dense))
    with pytest.raises(BadInputError, match=r"write \.weights\.h5"):
        write(tmp_path / "y.keras", found, lambda name: found[name].read(), kept=found.kept)
    assert not (tmp_path / "y.keras").exists()


def test_broken_archives_are_told(tmp_path):
    content = archive_of(tmp_path / "x.keras", model()).read_bytes()
    version = content.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")  # which no reader knows
    assert version != content
    for broken in (b"", b"PK", content[:-40], version, content[:60] + bytes(60) + content[120:]):
        (tmp_path / "y.keras").write_bytes(broken)
        with pytest.raises(BadInputError, match="cannot read"):
            read(tmp_path / "y.keras")
    with zipfile.ZipFile(tmp_path / "y.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(BadInputError, match="as Keras 3 writes them"):
        read(tmp_path / "y.keras")
