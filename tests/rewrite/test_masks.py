"""The nodes of masks: planes at right angles to the router's rows, one winner, and a penalty on the others."""

import numpy as np
import pytest
from graphs import weights, weighty
from moe import LOOKED_UP, ROUTERS, D, E, constants, moe

from onnx_net2net import widen


def student(size, router="softmax, top-k", **options):
    return weighty(widen(moe(ROUTERS[router], LOOKED_UP), sizes={"experts": size}, **options).student)


def test_planes_are_orthogonal_to_the_rows_of_the_router():
    planes = weights(student("3x"))["l_planes"].reshape(D, E, 3)
    along = np.einsum("dej,ed->ej", planes, constants()["router"])
    assert np.abs(along).max() < 1e-5
    assert np.linalg.matrix_rank(planes.reshape(D, -1)) == D


def test_copies_that_an_expert_does_not_have_never_win():
    found = weights(student(E + 1))
    lowest = found["l_copies_offsets"].reshape(E, 2) < -1e30
    assert lowest.tolist() == [[False, False]] + [[False, True]] * (E - 1)
    assert not found["l_planes"].reshape(D, E, 2)[:, lowest].any()
    assert found["l_copies_places"].tolist() == [0, 1, 2, 4, 6]


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_draws_the_planes(seed):
    one, same, other = (weights(student("2x", seed=s))["l_planes"] for s in (seed, seed, seed + 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_even_copies_need_no_gather():
    assert "l_copies_places" not in weights(student("2x"))
    assert [node.op_type for node in student("2x").graph.node].count("ArgMax") == 1
