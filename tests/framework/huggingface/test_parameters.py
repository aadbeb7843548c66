"""Parameters grow by rows as they do as a whole, and the tensors of a checkpoint are cut out of them."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

from onnx_net2net import BadInputError
from onnx_net2net.algebra.maps import identity, pad, replicate, uneven, uniform
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth, fold
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface import parameters
from onnx_net2net.framework.huggingface.parameters import StudentParameter, Written, parameters_of
from onnx_net2net.framework.huggingface.skeleton import Cut

RNG = np.random.default_rng(0)


def stored(values):
    return Stored(values.shape, values.dtype, lambda: values)


def drawn(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def whole(name, shape):
    return Cut(name, shape, 0, tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))))


def grown(values, *axes):
    return StudentParameter("w", stored(values), WeightGrowth(axes))


MADE = [AxisGrowth(uniform(6, 12)), AxisGrowth(replicate(6, 9, np.random.default_rng(1))), AxisGrowth(identity(6))]
READ = [AxisGrowth(uniform(4, 8), reads=True), AxisGrowth(replicate(4, 7, np.random.default_rng(2)), reads=True)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("reads", READ)
@pytest.mark.parametrize("made", MADE)
def test_rows_are_copies_whose_shares_sum_to_the_weight(made, reads, dtype):
    values = drawn(6, 4).astype(dtype)
    own = grown(values, made, reads)
    read = own.read()
    rows = np.concatenate([read(start, min(start + 5, own.shape[0])) for start in range(0, own.shape[0], 5)])
    assert rows.shape == own.shape
    assert rows.dtype == dtype
    sums = fold(rows.astype(np.float64), [np.arange(len(rows)), reads.map.index])
    tolerance = 4 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(sums, values[made.map.index].astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axis", [AxisGrowth(pad(6, 9, "mean")), AxisGrowth(uniform(6, 12), reads=True)])
def test_a_weight_whose_first_axis_is_summed_or_filled_grows_by_rows(axis):
    values = drawn(6, 10)
    own = grown(values, axis, AxisGrowth(uniform(10, 20)))
    read = own.read()
    result = np.concatenate([read(start, start + 3) for start in range(0, own.shape[0], 3)])
    assert result.shape == own.shape
    if axis.reads:
        np.testing.assert_allclose(fold(result, [axis.map.index, np.arange(20)])[:, :10], values, rtol=1e-5)
    else:
        np.testing.assert_allclose(result[6:, :10], np.broadcast_to(values.mean(0), (3, 10)), rtol=1e-4, atol=1e-6)


def put_together(tensor):
    """What the pieces of a tensor are in a file, in whatever order they are made."""
    found = np.zeros(tensor.nbytes, np.uint8)
    for place, make in reversed(list(tensor.pieces())):
        piece = make().reshape(-1).view(np.uint8)
        found[place : place + len(piece)] = piece
    return found.view(tensor.parameter.dtype).reshape(tensor.cut.shape)


def test_the_pieces_of_a_tensor_are_its_rows_in_order(monkeypatch):
    monkeypatch.setattr(parameters, "BLOCK_BYTES", 40)
    values = drawn(6, 4)
    own = grown(values, AxisGrowth(replicate(6, 9, np.random.default_rng(1))), AxisGrowth(identity(4)))
    tensor = Written("w", whole("w", own.shape), own)
    assert len(list(tensor.pieces())) > 1
    np.testing.assert_array_equal(put_together(tensor), values[own.growth.axes[0].map.index])


@pytest.mark.parametrize("block", [30, 1 << 19])
def test_stacks_of_matrices_grow_a_matrix_at_a_time(monkeypatch, block):
    """Three experts become six; a cut of one of them begins within its rows."""
    monkeypatch.setattr(parameters, "BLOCK_BYTES", block)
    values = drawn(3, 4, 5)
    made, reads = AxisGrowth(uniform(3, 6)), AxisGrowth(uniform(5, 10), reads=True)
    own = grown(values, made, AxisGrowth(uniform(4, 8)), reads)
    assert own.is_stack == (block == 30)
    result = put_together(Written("w", whole("w", own.shape), own))
    sums = fold(result, [np.arange(6), np.arange(8), reads.map.index])
    np.testing.assert_allclose(sums, values[made.map.index][:, own.growth.axes[1].map.index], rtol=1e-5)
    np.testing.assert_array_equal(own.read()(1, 3), result[1:3])
    part = Written("w.4", Cut("w", (3, 10), 4 * 80 + 20, (10, 1)), own)
    np.testing.assert_array_equal(put_together(part), result[4, 2:5])


UNEVEN = AxisGrowth(uneven(uniform(4, 8), 0.3, np.random.default_rng(3)), reads=True)


@pytest.mark.parametrize(
    ("growth", "rounding"),
    [
        (None, 0),
        (WeightGrowth((MADE[0], UNEVEN)), 0),
        (WeightGrowth((MADE[0], UNEVEN), factor=2.0), 0),
        (WeightGrowth((MADE[0], READ[0])), 1 / 32),
        (WeightGrowth((MADE[0], AxisGrowth(uniform(4, 12), reads=True))), 0.25),
        (WeightGrowth((MADE[0], UNEVEN), factor=1.5), 1),
        (WeightGrowth((AxisGrowth(pad(6, 9, "mean")), UNEVEN)), 1),
        (WeightGrowth((MADE[0], AxisGrowth(uniform(4, 12), reads=True, spread=False))), 1),
    ],
)
def test_copies_and_their_fixed_parts_are_not_rounded(growth, rounding):
    values = drawn(6, 4).astype(ml_dtypes.bfloat16)
    own = StudentParameter("w", stored(values), growth)
    assert own.rounding == rounding
    if growth and not rounding:
        made, reads = growth.axes
        sums = fold(own.tensor().read().astype(np.float64), [np.arange(made.map.new), reads.map.index])
        np.testing.assert_array_equal(sums, growth.factor * values[made.map.index].astype(np.float64))


def test_experts_are_cut_out_of_one_parameter_and_put_together_again():
    """Three experts with a gate and an up of 2 x 5 each lie in one parameter of 3 x 4 x 5."""
    values = drawn(3, 4, 5)
    cuts = {f"{expert}.{part}": Cut("experts", (2, 5), expert * 20 + place * 10, (5, 1))
            for expert in range(3) for place, part in enumerate(("gate", "up"))}  # fmt: skip
    own = StudentParameter("experts", stored(values))
    parts = {name: put_together(Written(name, cut, own)) for name, cut in cuts.items()}
    np.testing.assert_array_equal(parts["1.up"], values[1, 2:])
    skeleton = SimpleNamespace(model=object(), cuts=cuts, tied={}, shapes={"experts": (3, 4, 5)})
    found, _ = parameters_of(skeleton, {name: stored(part) for name, part in parts.items()})
    np.testing.assert_array_equal(found["experts"].read(), values)
    np.testing.assert_array_equal(found["experts"].part(1, 3), values[1:])
    np.testing.assert_array_equal(found["experts"].row(2).part(1, 3), values[2, 1:3])


def skeleton_of(**shapes):
    return SimpleNamespace(
        model=SimpleNamespace(base_model_prefix="model"), cuts={n: whole(n, s) for n, s in shapes.items()}, tied={},
        shapes=shapes,
    )  # fmt: skip


def test_a_prefix_may_be_missing_in_the_checkpoint():
    shapes = {"model.a": (2, 3), "model.b": (4,)}
    found, called = parameters_of(skeleton_of(**shapes), {"a": stored(drawn(2, 3)), "b": stored(drawn(4))})
    assert set(found) == set(shapes)
    assert called("model.a") == "a"


def test_a_checkpoint_that_does_not_fit_the_class_is_refused():
    with pytest.raises(BadInputError, match=r"a is \[2, 3\] there, \[2, 4\] in the class"):
        parameters_of(skeleton_of(a=(2, 4)), {"a": stored(drawn(2, 3))})
    with pytest.raises(BadInputError, match="lacks b"):
        parameters_of(skeleton_of(a=(2, 3), b=(1,)), {"a": stored(drawn(2, 3))})
