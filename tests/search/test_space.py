"""What may vary: read, told apart, and turned into steps."""

import random

import pytest

from onnx_net2net.errors import BadInputError
from onnx_net2net.search.cost import Cost
from onnx_net2net.search.space import read_space

TEXT = """
widen: {ffn: [2x, 1x, 1.5x], stem: [16, 32]}
repeat: {blocks: [+0, +2, 1]}
train: {rate: {low: 1.0e-4, high: 1.0e-2, log: true}, kind: [sgd, adam]}
constraints: {parameters: 2e3, macs: 3x}
"""


def read(tmp_path, text=TEXT):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path)


def test_choices_are_in_ascending_order(tmp_path):
    space = read(tmp_path)
    assert {v.name: v.choices for v in space.variables} == {
        "ffn": ("1x", "1.5x", "2x"), "stem": (16, 32), "blocks copies": (0, 1, 2), "rate": (), "kind": ("sgd", "adam"),
    }  # fmt: skip
    assert space.numbers == ("rate", "kind")
    assert space.size == float("inf")


def test_a_candidate_is_grown_by_steps(tmp_path):
    space = read(tmp_path)
    small = {"ffn": "1x", "stem": 16, "blocks copies": 0, "rate": 0.001, "kind": "sgd"}
    large = {"ffn": "1.5x", "stem": 32, "blocks copies": 2, "rate": 0.001, "kind": "sgd"}
    assert space.steps(small) == [{"operation": "widen", "sizes": {"stem": 16}}]
    assert space.steps(large, small) == [
        {"operation": "widen", "sizes": {"ffn": "1.5x", "stem": 32}},
        {"operation": "deepen", "repeat": ["blocks=+2"]},
    ]
    assert space.steps({**large, "ffn": "2x"}, large) == [{"operation": "widen", "sizes": {"ffn": f"{2 / 1.5!r}x"}}]
    assert space.steps(large, large) == []


def test_two_candidates_have_a_smallest_larger_one(tmp_path):
    space = read(tmp_path)
    one = {"ffn": "2x", "stem": 16, "blocks copies": 0, "rate": 0.001, "kind": "sgd"}
    other = {"ffn": "1x", "stem": 32, "blocks copies": 1, "rate": 0.002, "kind": "adam"}
    assert space.joined(one, other) == {**other, "ffn": "2x"}


def test_what_varies_stays_inside(tmp_path):
    space, draw = read(tmp_path), random.Random(0)
    candidate = space.drawn(draw)
    for _ in range(50):
        after = space.varied(candidate, draw)
        for variable in space.variables:
            value = after[variable.name]
            assert value in variable.choices if variable.choices else variable.low <= value <= variable.high
            if variable.kind != "train":
                assert variable.choices.index(value) >= variable.choices.index(candidate[variable.name])
        candidate = after
    assert candidate["blocks copies"] == 2


def test_limits_are_numbers_or_multiples(tmp_path):
    space, teacher = read(tmp_path), Cost(500, 100)
    assert space.excess(Cost(2000, 300), teacher) == ""
    assert space.excess(Cost(2001, 300), teacher) == "parameters 2,001 is above 2,000"
    assert space.excess(Cost(2000, 301), teacher) == "macs 301 is above 300"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("widen: {ffn: [0.5x]}", "0.5x is neither a number of units nor a multiple"),
        ("widen: {ffn: [2x, 64]}", "only numbers of units or only multiples"),
        ("widen: {ffn: 2x}", "has to be a list of choices"),
        ("repeat: {blocks: [-1]}", "-1 is no number of copies"),
        ("train: {rate: {low: 1, high: 1}}", "low has to be below high"),
        ("train: {rate: {low: 0, high: 1, log: true}}", "above 0 if log"),
        ("train: {steps: [1, 2]}", r"\{steps\} stands for after how many steps"),
        ("constraints: {parameters: 3x}", "lets nothing vary"),
        ("widen: {ffn: [1x]}\nconstraints: {size: 3}", "constraints has no 'size'"),
        ("widen: {ffn: [1x]}\nconstraints: {macs: many}", "macs is a number or a multiple"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_line(tmp_path, text, words):
    with pytest.raises(BadInputError, match=words):
        read(tmp_path, text)


def test_a_limit_of_latency_is_measured_and_kept(tmp_path):
    space = read(tmp_path, "widen: {ffn: [1x, 2x]}\nconstraints: {latency_ms: 12}")
    assert space.is_timed
    assert not read(tmp_path).is_timed
    assert space.excess(Cost(10, 10, 11.0), Cost(10, 10, 5.0)) == ""
    assert space.excess(Cost(10, 10, 13.0), Cost(10, 10, 5.0)) == "latency_ms 13 is above 12"
