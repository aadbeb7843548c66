"""Growth rules for QONNX, the format of Brevitas and FINN: quantizers of any width.

    onnx-net2net widen model.onnx -o student.onnx --factor 2 --rules qonnx_rules.py

`Quant` rounds to a grid, so copies of a unit stay copies if they have its scale. What reads them sums a multiple of
each: the weight on a copy cannot be divided behind a quantizer of weights, so `widen` multiplies the copies instead.
A package offers its rules to everybody who installs it by an entry point of the group `onnx_net2net.rules`.
"""

from collections.abc import Sequence

from onnx_net2net.rules import Op, rule
from onnx_net2net.rules.typing import Typed, type_function

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


def quant(op: Op) -> None:
    """Round each unit to a grid; scale, zero point and width are broadcast to the data."""
    data = op.output() or op.input(0)
    if data is None:
        op.freeze_all("has operands of unknown shape")
        return
    op.broadcast(op.inputs, data)
    op.scales(1, *range(3, len(op.inputs)))


def _typed(types: Sequence[Typed | None], *_: object) -> list[Typed]:
    return [types[0]] if types[0] is not None else []


for domain in DOMAINS:
    rule("Quant", "BipolarQuant", "Trunc", domain=domain, pointwise="any", inert="signed narrow rounding_mode")(quant)
    type_function("Quant", "BipolarQuant", "Trunc", domain=domain)(_typed)
