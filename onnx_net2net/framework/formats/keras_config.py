"""The config of a Keras model at the sizes of other weights.

Keras makes a model from its config, so that the layers in a `.keras` file must have the sizes of its tensors. A table
maps the arguments of Keras' own layers to the axes of their tensors. Any other layer (`Reshape`, a class of the user's)
may hold a size, and the file is refused. Weights alone (`.weights.h5`) need no config.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from onnx_net2net.errors import BadInputError, RefusedError

Shapes = Mapping[str, tuple[int, ...]]

_FILTERS = (("filters", "vars/0", -1),)
_UNITS = (("units", "cell/vars/1", 0),)

_SIZES: dict[str, tuple[tuple[str, str, int], ...]] = {
    "Dense": (("units", "vars/0", -1),),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _FILTERS),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), (("filters", "vars/0", -2),)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), (("filters", "vars/1", -1),)),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), (("depth_multiplier", "vars/0", -1),)),
    "Embedding": (("input_dim", "vars/0", 0), ("output_dim", "vars/0", 1)),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), _UNITS),
    "MultiHeadAttention": (
        ("num_heads", "query_dense/vars/0", 1),
        ("key_dim", "query_dense/vars/0", 2),
        ("value_dim", "value_dense/vars/0", 2),
    ),
    "GroupedQueryAttention": (
        ("num_query_heads", "query_dense/vars/0", 1),
        ("num_key_value_heads", "key_dense/vars/0", 1),
        ("head_dim", "query_dense/vars/0", 2),
    ),
}
"""For each layer its arguments that are sizes: each with the tensor and the axis that has it."""

_INNER = {
    "Bidirectional": {"layer": "forward_layer", "backward_layer": "backward_layer"},
    "TimeDistributed": {"layer": "layer"},
}
"""For each layer that wraps others: the names of these in its config, and in its weights."""

_DIMENSIONS = ("1D", "2D", "3D")

_WITHOUT = frozenset({
    "InputLayer", "Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax", "Dropout", "GaussianDropout",
    "GaussianNoise", "AlphaDropout", "ActivityRegularization", "Masking", "Identity", "Rescaling", "Flatten", "Permute",
    "BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization", "RMSNormalization",
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum", "Concatenate", "Dot",
    "Attention", "AdditiveAttention",
    "Relu", "Gelu", "Sigmoid", "Silu", "Tanh", "Mean", "Exp", "Log", "Sqrt", "Square", "Negative",
    *(f"{name}{n}" for n in _DIMENSIONS for name in (
        "MaxPooling", "AveragePooling", "GlobalAveragePooling", "GlobalMaxPooling", "ZeroPadding", "Cropping",
        "UpSampling", "SpatialDropout",
    )),
})  # fmt: skip
"""Layers and operations of Keras whose config has no width."""

_MODELS = ("Functional", "Sequential")


def resized(config: dict[str, Any], shapes: Shapes, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a config with the sizes that tensors have.

    Args:
        config: What `config.json` of a `.keras` file holds.
        shapes: The shape of each tensor, by its path in the file (`layers/dense/vars/0`).
        names: What the config calls the layer whose tensors are at a path (`layers/dense`).

    Raises:
        RefusedError: If a layer may hold a size that nothing tells.
        BadInputError: If it is no config of Keras.
    """
    result = copy.deepcopy(config)
    try:
        _resize_model(result, shapes, names)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInputError(f"the config in the .keras file is none of Keras 3 ({error!r})") from error
    return result


def _resize_model(model: dict[str, Any], shapes: Shapes, names: Mapping[str, str]) -> None:
    kind = model["class_name"]
    if kind not in _MODELS or not _is_own(model):
        raise _unknown(model, "whose class may hold sizes")
    places = {name: path for path, name in names.items() if path.rpartition("/")[0] == "layers"}
    for layer in model["config"]["layers"]:
        name = layer["config"]["name"]
        _resize_layer(layer, f"{places.get(name, name)}/", shapes)
        layer.pop("build_config", None)  # shapes of the old inputs; the layers are built when they are called


def _resize_layer(layer: dict[str, Any], path: str, shapes: Shapes) -> None:
    kind, config = layer["class_name"], layer["config"]
    if not _is_own(layer) or kind not in (*_SIZES, *_INNER, *_WITHOUT):
        raise _unknown(layer, "whose config may hold sizes")
    for inside, place in _INNER.get(kind, {}).items():
        if config.get(inside) is not None:
            _resize_layer(config[inside], f"{path}{place}/", shapes)
            config[inside].pop("build_config", None)
    new = {argument: shapes[f"{path}{tensor}"][axis] for argument, tensor, axis in _SIZES.get(kind, ())}
    changed = {name for name, size in new.items() if config[name] is not None and config[name] != size}
    if changed and config.get("groups", 1) != 1:
        raise _unknown(layer, "whose groups do not tell its width")
    if kind == "MultiHeadAttention" and config.get("output_shape") is not None:
        raise _unknown(layer, "which has an output_shape of its own")
    config.update((name, size) for name, size in new.items() if name in changed)


def _is_own(layer: Mapping[str, Any]) -> bool:
    """Tell whether a class is one of Keras."""
    return str(layer["module"]).split(".")[0] == "keras"


def _unknown(layer: Mapping[str, Any], why: str) -> RefusedError:
    name = layer["config"].get("name", "?")
    return RefusedError(
        f"no .keras file can be made: {name!r} is a {layer['class_name']}, {why}; write .weights.h5 and load it "
        "into the wider class"
    )
