"""Models of Keras and Flax, exported as their users do, go there and back into wider ones.

`tools/checkpoint_jax_table.py` does the same with twelve models.
"""

import os

import pytest

from onnx_net2net import RefusedError, checkpoint, widen

EXACT = {"keras": 1e-6, "flax": 1e-12}
"""Keras multiplies in single precision where torch is its backend."""


@pytest.mark.parametrize("name", [pytest.param("GRU, both kinds", marks=pytest.mark.slow), "depthwise separable CNN"])
def test_a_model_of_keras(tmp_path, name):
    for module in ("torch", "onnxscript", "h5py"):
        pytest.importorskip(module)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    from checkpoint_jax_table import keras_way
    from keras_classes import MODELS

    error, old, new = keras_way(MODELS[name], 1.5, tmp_path)
    assert error < EXACT["keras"]
    assert new == {width: size * 3 // 2 for width, size in old.items()}


def test_a_config_that_may_hold_sizes_makes_no_keras_file(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("h5py")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Reshape((2, 4)), layers.Flatten(),
        layers.Dense(3),
    ])  # fmt: skip
    model.save(tmp_path / "teacher.keras")
    model(keras.ops.zeros((2, 6)))
    model.export(tmp_path / "teacher.onnx", format="onnx", verbose=False)
    student = widen(tmp_path / "teacher.onnx", factor=2, framework="keras").student
    grown = checkpoint(tmp_path / "teacher.onnx", student, tmp_path / "teacher.keras")
    with pytest.raises(RefusedError, match=r"is a Reshape, .* write \.weights\.h5"):
        grown.save(tmp_path / "student.keras")
    assert not (tmp_path / "student.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LSTM", "CNN with BatchNorm"])
def test_a_module_of_flax(tmp_path, name):
    for module in ("flax", "jax2onnx", "orbax.checkpoint", "msgpack"):
        pytest.importorskip(module)
    from checkpoint_jax_table import flax_way
    from flax_classes import MODELS

    error, old, new = flax_way(MODELS[name], 1.5, tmp_path)
    assert error < EXACT["flax"]
    assert new == {width: size * 3 // 2 for width, size in old.items()}
