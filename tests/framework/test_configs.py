"""The config of a student is found by making classes of configs."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from onnx_net2net import BadInputError, RefusedError
from onnx_net2net.framework.configs import StudentSizes, grown_config

RAW = {"hidden_size": 8, "heads": 2, "inner": None, "max_position": 8, "vocab_size": 16, "layers": 2,
       "kinds": ["a", "b"]}  # fmt: skip


ALIASES = {"num_attention_heads": "heads", "num_hidden_layers": "layers"}


class Full(SimpleNamespace):
    def to_dict(self):
        return dict(RAW)


def build(config):
    """A class: embeddings, and for each layer a matrix to `inner` (4 x hidden by default)."""
    if config["hidden_size"] % config["heads"]:
        raise BadInputError("heads")
    inner = config.get("inner") or 4 * config["hidden_size"]
    shapes = {f"{layer}.up": (inner, config["hidden_size"]) for layer in range(config["layers"])}
    return SimpleNamespace(shapes={"embed": (config["vocab_size"], config["hidden_size"]), **shapes})


def found(shapes, pairs, named=None, layers=None):
    return grown_config(
        RAW, Full(attribute_map=ALIASES), StudentSizes(shapes, frozenset(pairs), named or {}, layers or {}), build
    )[0]


def test_the_numbers_that_make_the_shapes_change_and_no_others():
    shapes = {"embed": (16, 16), "0.up": (64, 16), "1.up": (64, 16)}
    config = found(shapes, {(8, 16), (32, 64), (2, 4)}, {"num_attention_heads": (2, 4)})
    assert config == {**RAW, "hidden_size": 16, "heads": 4}


def test_a_width_that_the_config_leaves_to_the_class_is_written_down():
    shapes = {"embed": (16, 8), "0.up": (48, 8), "1.up": (48, 8)}
    assert found(shapes, {(32, 48)}) == {**RAW, "inner": 48}


def test_what_becomes_smaller_is_made_up_for_by_a_number_of_them():
    raw = {"expert": 8, "shared": 1, "count": 4}

    def make(config):
        experts = dict.fromkeys(("up", "down"), (config["count"], config["expert"]))
        return SimpleNamespace(shapes={**experts, "beside": (config["expert"] * config["shared"],)})

    full = SimpleNamespace(to_dict=lambda: dict(raw), attribute_map={})
    sizes = StudentSizes({"up": (8, 4), "down": (8, 4), "beside": (8,)}, frozenset({(8, 4), (4, 8)}), {}, {})
    assert grown_config(raw, full, sizes, make)[0] == {"expert": 4, "shared": 2, "count": 8}


def test_lists_of_layers_grow_with_the_layers():
    shapes = {"embed": (16, 8), **{f"{layer}.up": (32, 8) for layer in range(4)}}
    config = found(shapes, {(2, 4)}, {"num_hidden_layers": (2, 4)}, {2: [0, 0, 1, 1]})
    assert config == {**RAW, "layers": 4, "kinds": ["a", "a", "b", "b"]}


def test_sizes_that_no_config_makes_are_refused_with_the_parameter():
    with pytest.raises(RefusedError, match=r"0.up \[30, 9\]"):
        found({"embed": (16, 8), "0.up": (30, 9), "1.up": (32, 8)}, {(8, 9)})


def staged(config):
    """A class with a width for each stage, and a ratio."""
    shapes = {
        f"{stage}.up": (int(width * config.get("ratio", 2.0)), width) for stage, width in enumerate(config["dims"])
    }
    return SimpleNamespace(shapes=shapes)


PAIRS = frozenset({(8, 16), (16, 32), (32, 32), (16, 48), (32, 96), (64, 96)})


@pytest.mark.parametrize("ratio", [2, 2.0])
def test_lists_of_widths_and_ratios_follow_the_sizes(ratio):
    raw = {"dims": [8, 16, 32], "ratio": ratio}
    full = SimpleNamespace(to_dict=lambda: dict(raw))
    sizes = StudentSizes({"0.up": (48, 16), "1.up": (96, 32), "2.up": (96, 32)}, PAIRS, {}, {})
    assert grown_config(raw, full, sizes, staged)[0] == {"dims": [16, 32, 32], "ratio": 3.0}


def test_numbers_that_no_shape_shows_are_those_with_which_the_class_is_exact():
    raw = {"hidden_size": 8, "vocab_size": 16, "layers": 0}
    full = SimpleNamespace(to_dict=lambda: {**raw, "heads": 2})
    sizes = StudentSizes({"embed": (16, 16)}, frozenset({(8, 16), (2, 4)}), {}, {})

    def build_(config):
        return build({"heads": 2, **config})

    found, _ = grown_config(raw, full, sizes, build_, lambda config, _: config.get("heads") == 4)
    assert found == {**raw, "hidden_size": 16, "heads": 4}
    with pytest.raises(RefusedError, match="computes what the teacher does"):
        grown_config(raw, full, sizes, build_, lambda config, _: False)
