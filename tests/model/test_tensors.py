"""Where external data may be, and what is wrong with it."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from small import mlp, run, save_external

from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.model import load


def with_location(folder, location):
    """A saved model, changed so that it looks for its data elsewhere."""
    path = save_external(mlp(), folder)
    proto = onnx.load(path, load_external_data=False)
    for item in proto.graph.initializer:
        item.external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    return path


def check_weights(path):
    loaded = load(path)
    for stub in loaded.proto.graph.initializer:
        assert loaded.tensor(stub).numpy().std() > 0.5
    Graph(loaded).finish().save(path.parent / "again.onnx")
    assert run(path.parent / "again.onnx", {"x": np.ones((1, 8), np.float32)})[0].std() > 0.5


def test_hugging_face_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = save_external(mlp(), blobs)
    for name in (path.name, f"{path.name}.data"):
        os.rename(blobs / name, blobs / name.replace("m.onnx", "3f"))
        (snapshot / name).symlink_to(Path("..", "..", "..", "blobs", name.replace("m.onnx", "3f")))
    check_weights(snapshot / "m.onnx")


def test_hard_links_and_subfolders(tmp_path):
    (tmp_path / "sub").mkdir()
    path = with_location(tmp_path, "sub/w")
    os.link(tmp_path / "m.onnx.data", tmp_path / "sub" / "w")
    check_weights(path)


def test_locations_outside_the_folder_are_refused(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    save_external(mlp(), tmp_path)
    (folder / "link").symlink_to(tmp_path / "m.onnx.data")
    (folder / "sub").mkdir()
    inside = "is not a path inside the model's folder"
    for location, reason in {
        "../m.onnx.data": inside,
        "sub/../../m.onnx.data": inside,
        "sub\\..\\..\\m.onnx.data": inside,
        os.fspath(tmp_path / "m.onnx.data"): inside,
        "C:\\m.onnx.data": inside,
        "": inside,
        "link": "is a link that leaves the model's folder",
        "sub": "is missing",
        "none": "is missing",
    }.items():
        with pytest.raises(BadInputError, match=f"^.*external data .*{reason}$"):
            load(with_location(folder, location))


def test_truncated_data_file(tmp_path):
    path = save_external(mlp(), tmp_path)
    os.truncate(tmp_path / "m.onnx.data", 3000)
    with pytest.raises(BadInputError, match=r"m.onnx cannot be used: external data file m.onnx.data is too short for"):
        load(path)


def test_damaged_offsets(tmp_path):
    path = save_external(mlp(), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for value in ("-8", "eight", "99999999999999999999"):
        proto.graph.initializer[1].external_data[1].value = value
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(BadInputError, match=r"m.onnx cannot be used: [^\n]+$"):
            load(path)
