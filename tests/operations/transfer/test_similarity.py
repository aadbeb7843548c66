"""Which network has most to give: both measures, measured agreement, and the command."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from graphs import net
from hypothesis import given, settings, strategies as st

from onnx_net2net import BadInputError, load, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations.transfer.similarity import agreement, similarity

MODELS = Path(__file__).parents[3] / "models"


def mlp(*widths, seed=0):
    """Linear layers with ReLU between them."""
    rng, lines, weights = np.random.default_rng(seed), [], {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        weights |= {f"w_{i}": rng.standard_normal((outputs, inputs)), f"b_{i}": rng.standard_normal(outputs)}
        last = i == len(widths) - 2
        lines.append(f"{'y' if last else f'v_{i}'} = Gemm<transB=1>({f'h_{i - 1}' if i else 'x'}, w_{i}, b_{i})")
        lines += [] if last else [f"h_{i} = Relu(v_{i})"]
    text = f"(float[N, {widths[0]}] x) => (float[N, {widths[-1]}] y) {{ {' '.join(lines)} }}"
    return net(text, **{name: values.astype(np.float32) for name, values in weights.items()})


WIDTHS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(lambda hidden: (5, *hidden, 3))


def of(target, source, measure):
    return getattr(similarity(target, [source], measure=measure)[0], measure)


@given(WIDTHS, WIDTHS)
@settings(max_examples=10, deadline=None)
def test_measures_are_shares_and_dpiats_is_symmetric(one, other):
    forth, back = mlp(*one), mlp(*other, seed=1)
    there, here = (similarity(*pair, measure="kept")[0] for pair in ((forth, [back]), (back, [forth])))
    assert there.dpiat == here.dpiat
    assert all(0 <= value <= 1 for value in (there.dpiat, there.filled, there.kept))
    (same,) = similarity(forth, [mlp(*one, seed=2)])
    assert (same.dpiat, same.filled, same.kept) == (pytest.approx(1), 1, 1)


def test_kept_and_filled_are_what_two_networks_have_in_common_by_the_size_of_each():
    common = 5 * 4 + 4 + 4 * 3 + 3
    sizes = {width: 5 * width + width + width * 3 + 3 for width in (4, 8)}
    (wider,) = similarity(mlp(5, 8, 3), [mlp(5, 4, 3)])
    assert (wider.kept, wider.filled) == (1, pytest.approx(common / sizes[8]))
    (narrower,) = similarity(mlp(5, 4, 3), [mlp(5, 8, 3)])
    assert (narrower.kept, narrower.filled) == (pytest.approx(common / sizes[8]), 1)


def test_sources_are_ranked_by_the_measure_and_then_by_what_they_fill():
    sources = [load(mlp(5, width, width, 3)) for width in (4, 30, 8, 12)]
    for measure in ("kept", "filled", "dpiat"):
        ranked = similarity(mlp(5, 10, 10, 3), sources, measure=measure)
        values = [(getattr(one, measure), one.filled) for one in ranked]
        assert values == sorted(values, reverse=True)
    (first, second, *_) = similarity(mlp(5, 10, 10, 3), sources, measure="kept")
    assert (first.kept, second.kept) == (1, 1)
    assert (first.filled, second.filled) == (of(mlp(5, 10, 10, 3), sources[2], "filled"), pytest.approx(59 / 203))


def test_a_target_that_contains_the_source_agrees_with_it_whatever_its_weights():
    source = load(MODELS / "digits_mlp.onnx")
    target = widen(source, factor=1.5, seed=3).student
    assert agreement(source, target) == pytest.approx(1)
    (one,) = similarity(target, [source], measure="agreement")
    assert one.agreement == pytest.approx(1)
    assert (one.kept, one.filled < 1) == (1, True)


def test_agreement_is_not_defined_where_the_interfaces_differ():
    assert agreement(load(mlp(5, 8, 3)), load(mlp(6, 8, 3))) is None
    assert agreement(load(mlp(5, 8, 3)), load(mlp(5, 8, 4))) is None


def test_command_ranks_sources(capsys):
    names = ("digits_mlp", "digits_resnet", "digits_inception_bn")
    paths = [str(MODELS / f"{name}.onnx") for name in names]
    assert main(["similarity", paths[1], *paths]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("digits")]
    assert lines[0][0] == "digits_resnet.onnx"
    assert lines[0][1:] == ["1.0000"] * 4
    assert main(["similarity", paths[1], *paths, "--json", "--measure", "dpiat"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["target"] == "digits_resnet.onnx"
    assert answer["sources"][0]["name"] == "digits_resnet.onnx"
    values = [one["dpiat"] for one in answer["sources"]]
    assert values == sorted(values, reverse=True)
    assert values[1] < 0.6


def test_bad_requests_are_one_line(capsys):
    assert main(["similarity", str(MODELS / "digits_mlp.onnx"), "nowhere.onnx"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(BadInputError, match="no measure 'size'"):
        similarity(mlp(5, 3), [mlp(5, 3)], measure="size")
