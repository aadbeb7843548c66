"""Models load without their weights, keep their layout, and are whole files or none."""

import dataclasses
import os

import numpy as np
import onnx
import pytest
from onnx import helper
from small import FLOAT, build, info, mlp, normalised, rng, run, save_external

from onnx_net2net.graph.graph import Graph
from onnx_net2net.model import model as model_module, tensors
from onnx_net2net.model.model import load


def big_external(folder, megabytes=64):
    """A model whose weight is a hole in a sparse file."""
    rows = megabytes * 1024 * 1024 // 4 // 1024
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", (1, rows))], [info("y", (1, 1024))])
    weight = proto.graph.initializer.add(name="w", data_type=FLOAT, dims=[rows, 1024], data_location=1)
    weight.external_data.add(key="location", value="w.bin")
    with open(folder / "w.bin", "wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_loading_and_drafting_read_no_weights(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(tensors.DataFile, "opened", refuse)
    loaded = load(big_external(tmp_path, 8 * 1024))
    draft = Graph(loaded)
    draft.reader(draft.graph.nodes[0].inputs[1])
    finished = draft.finish()
    assert finished.parameters == 2 * 1024**3
    assert finished.nbytes > 8 * 1024**3
    assert "2,147,483,648 parameters, 8589.9 MB" in repr(finished)


def test_saving_external_data_holds_one_tensor_at_a_time(tmp_path):
    count, shape = 16, (1024, 1024)
    draft = Graph(load(build()))
    alive = peak = 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def compute():
        nonlocal alive, peak
        alive += 1
        peak = max(peak, alive)
        return np.ndarray.__new__(Counted, shape, np.float32)

    names = [f"w{index}" for index in range(count)]
    constants = [draft.lazy_constant(name, FLOAT, shape, compute) for name in names]
    draft.graph.outputs.extend(constants)
    dataclasses.replace(draft.finish(), external=True).save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == count * 4 * 1024**2
    assert peak <= 2
    assert alive == 0


def test_progress_counts_bytes(tmp_path, monkeypatch):
    calls = []
    for limit in (10**9, 0):
        monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", limit)
        load(mlp()).save(tmp_path / "m.onnx", progress=lambda *call: calls.append(call))
    assert calls == [("w", 0, 4096), ("v", 2048, 4096), ("m.onnx", 4096, 4096)] * 2


def test_layout_follows_the_source(tmp_path):
    proto = mlp()
    inline = tmp_path / "inline.onnx"
    onnx.save(proto, inline)
    Graph(load(inline)).finish().save(tmp_path / "a.onnx")
    Graph(load(save_external(proto, tmp_path))).finish().save(tmp_path / "b.onnx")
    assert {"a.onnx", "b.onnx", "b.onnx.data"} < set(os.listdir(tmp_path))
    assert "a.onnx.data" not in os.listdir(tmp_path)
    feeds = {"x": rng.normal(size=(3, 8)).astype(np.float32)}
    results = [run(tmp_path / name, feeds)[0] for name in ("inline.onnx", "m.onnx", "a.onnx", "b.onnx")]
    assert all((result == results[0]).all() for result in results)


def test_large_models_get_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", 4000)
    load(mlp()).save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == 2 * 8 * 64 * 4
    assert load(tmp_path / "m.onnx").external


def test_small_external_tensors_become_inline(tmp_path):
    path = save_external(mlp(width=4), tmp_path)
    loaded = load(path)
    assert not loaded.weights
    assert loaded.external
    assert str(normalised(loaded.proto)) == str(normalised(onnx.load(path)))


def test_wrong_shape_is_found_before_it_is_written(tmp_path):
    draft = Graph(load(mlp()))
    draft.replace(draft.graph.nodes[2].inputs[1], (64, 8), lambda: np.zeros((64, 9), np.float32))
    with pytest.raises(ValueError, match=r"v: computed shape \(64, 9\), declared \(64, 8\)"):
        draft.finish().save(tmp_path / "m.onnx")


def test_on_disk_is_the_file_itself_or_a_temporary_one(tmp_path):
    path = save_external(mlp(), tmp_path)
    with load(path).on_disk() as same:
        assert same == path
    with Graph(load(path)).finish().on_disk() as other:
        assert other != path
        assert run(other, {"x": np.ones((1, 8), np.float32)})[0].shape == (1, 8)
    assert not other.exists()
