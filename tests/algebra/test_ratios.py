"""Dims that share a ratio are one class, whoever was joined first."""

from onnx_net2net.algebra.ratios import Ratio


def test_joined_ratios_are_one_class() -> None:
    one, other, third = Ratio(), Ratio(), Ratio()
    one.members, other.members, third.members = 1, 2, 1
    other.frozen = "is an input"
    assert not one.shared
    one.join(other)
    third.join(one)
    third.join(other)
    assert one.root() is other.root() is third.root()
    assert (one.root().members, one.root().frozen, third.shared) == (4, "is an input", True)
