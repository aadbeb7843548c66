"""Sizes in a config of Keras follow the tensors; what may hold another size is refused."""

import pytest

from onnx_net2net import BadInputError, RefusedError
from onnx_net2net.framework.formats.keras_config import resized

NAMES = {"layers/a": "a", "layers/a/cell": "cell"}


def model(kind, module="keras.layers", **config):
    layer = {"module": module, "class_name": kind, "config": {"name": "a", **config}}
    return {"module": "keras.src.models", "class_name": "Functional", "config": {"layers": [layer]}}


def only(config):
    return config["config"]["layers"][0]["config"]


@pytest.mark.parametrize(
    ("kind", "config", "shapes", "wanted"),
    [
        ("Conv2D", {"filters": 4, "groups": 1}, {"vars/0": (3, 3, 6, 8)}, {"filters": 8}),
        ("Conv2DTranspose", {"filters": 4}, {"vars/0": (3, 3, 8, 6)}, {"filters": 8}),
        ("SeparableConv2D", {"filters": 4}, {"vars/0": (3, 3, 6, 1), "vars/1": (1, 1, 6, 8)}, {"filters": 8}),
        ("Embedding", {"input_dim": 9, "output_dim": 4}, {"vars/0": (9, 6)}, {"input_dim": 9, "output_dim": 6}),
        ("GRU", {"units": 4}, {"cell/vars/1": (6, 18)}, {"units": 6}),
        (
            "MultiHeadAttention",
            {"num_heads": 2, "key_dim": 4, "value_dim": None, "output_shape": None},
            {"query_dense/vars/0": (8, 3, 4), "value_dense/vars/0": (8, 3, 4)},
            {"num_heads": 3, "key_dim": 4, "value_dim": None},
        ),
    ],
)
def test_sizes_follow_the_tensors(kind, config, shapes, wanted):
    given = model(kind, **config)
    found = only(resized(given, {f"layers/a/{name}": shape for name, shape in shapes.items()}, NAMES))
    assert {name: found[name] for name in wanted} == wanted
    assert only(given) == {"name": "a", **config}


def test_layers_inside_of_others_follow():
    inner = {"module": "keras.layers", "class_name": "LSTM", "config": {"units": 4}}
    given = model("Bidirectional", layer=inner, backward_layer=None)
    found = only(resized(given, {"layers/a/forward_layer/cell/vars/1": (6, 24)}, NAMES))
    assert found["layer"]["config"]["units"] == 6


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (model("Reshape", target_shape=[2, 4]), "whose config may hold sizes"),
        (model("Dense", module="mine", units=4), "whose config may hold sizes"),
        (model("Conv2D", filters=4, groups=2), "whose groups do not tell"),
        ({**model("Dense", units=4), "class_name": "Mine"}, "whose class may hold sizes"),
    ],
)
def test_what_may_hold_another_size_is_refused(given, reason):
    given["config"].setdefault("name", "m")
    with pytest.raises(RefusedError, match=reason):
        resized(given, {"layers/a/vars/0": (3, 3, 4, 8)}, NAMES)


@pytest.mark.parametrize("given", [{}, {"module": "keras", "class_name": "Functional", "config": []}])
def test_what_is_no_config_is_told(given):
    with pytest.raises(BadInputError, match="none of Keras 3"):
        resized(given, {}, {})
