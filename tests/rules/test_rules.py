"""A rule is a claim, op(E·x) = E·op(x), so it is tested without a model.

Each case is one operator whose inputs and outputs may all grow. Random maps are drawn for the dims that its rule
leaves free, the node is rewritten by them, and both are run: the grown operator on grown inputs has to give the grown
output. Cases are the operators' own from `onnx.backend.test`, and the table below.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import LAST_OPSET, analyse_open, build, conform, growable, run
from onnx import TensorProto, defs, helper

from onnx_net2net import rules
from onnx_net2net.algebra.dims import Dim, leaves
from onnx_net2net.analysis import inference
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.model.model import load
from onnx_net2net.rules import inert, lookup, rule, signature, supported
from onnx_net2net.rules.fixed import FIXED
from onnx_net2net.rules.op import Op

FLOAT = "float32"
Registry = dict[tuple[str, str], list[tuple[int, Any]]]


@dataclass(frozen=True)
class Case:
    """One node with its operands; those in `fixed` are constants, of the others some are at random."""

    name: str
    node: onnx.NodeProto
    opset: int
    operands: dict[str, np.ndarray]
    fixed: frozenset[str]
    free: frozenset[int] | None = None
    problem: str | None = None

    def model(self, rng: np.random.Generator | None = None) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The node as a model, with some of the operands behind the first as constants."""
        loose = [name for name in self.operands if name not in self.fixed]
        held = self.fixed | {name for name in loose[1:] if rng is not None and rng.random() < 0.4}
        feeds = {name: array for name, array in self.operands.items() if name not in held}
        constants = {name: array for name, array in self.operands.items() if name in held}
        return build([self.node], feeds, filter(None, self.node.output), constants, opset=self.opset), feeds

    def free_sizes(self) -> frozenset[int]:
        """The sizes of the dims that the rule leaves growable."""
        dims = growable(analyse_open(load(self.model()[0])))
        return frozenset((dim.origin or dim).size for dim in dims)


# --- Cases by hand ------------------------------------------------------------------------------------------------

TABLE: list[Case] = []


def case(
    kind: str,
    *operands: Any,
    free: set[int],
    opset: int = 18,
    outputs: int = 1,
    problem: str | None = None,
    **attrs: Any,
) -> None:
    """Add a case: a shape stands for random floats, an array or a list of integers for a constant, `fed` for neither.

    Sizes of dims are distinct, so that `free` can tell by size which may grow.
    """
    rng = np.random.default_rng(len(TABLE))
    arrays: dict[str, np.ndarray] = {}
    fixed = set()
    names = []
    for index, operand in enumerate(operands):
        name = "" if operand is None else "xabcdefgh"[index]
        names.append(name)
        if isinstance(operand, tuple):
            arrays[name] = (rng.random(operand) + 0.25).astype(FLOAT)
        elif isinstance(operand, Fed):
            arrays[name] = operand.array
        elif operand is not None:
            arrays[name] = np.array(operand, np.int64) if isinstance(operand, list) else operand
            fixed.add(name)
    node = helper.make_node(kind, names, [f"y{index}" for index in range(outputs)], **attrs)
    given = " ".join(str(list(o.shape) if isinstance(o, np.ndarray) else o).replace(" ", "") for o in operands)
    extras = "".join(f" {key}={value}" for key, value in attrs.items())
    label = f"{kind}-{opset} {given}{extras}"
    TABLE.append(Case(label, node, opset, arrays, frozenset(fixed), frozenset(free), problem=problem))


@dataclass(frozen=True)
class Fed:
    """An operand that is no constant."""

    array: np.ndarray

    def __repr__(self) -> str:
        return f"{self.array.dtype}{list(self.array.shape)}"


def fed(values: Any, dtype: type = np.int64) -> Fed:
    return Fed(np.array(values, dtype))


def floats(*values: float) -> np.ndarray:
    return np.array(values, FLOAT)


def scalar(value: float) -> np.ndarray:
    return np.array(value, FLOAT)


# Channels of convolutions are their weights' rows and columns; groups are a factor of both.
case("Conv", (2, 3, 4), (5, 3, 3), free={2, 3, 5})
case("Conv", (2, 3, 4, 4), (5, 3, 3, 3), (5,), free={2, 3, 5}, pads=[1, 1, 1, 1], strides=[2, 2])
case("Conv", (2, 3, 4, 4, 4), (5, 3, 1, 2, 3), free={2, 3, 5}, dilations=[1, 2, 1])
case("Conv", (2, 15, 4, 4), (21, 5, 3, 3), (21,), free={2, 3, 5, 7}, group=3)
case("Conv", (2, 5, 4, 4), (5, 1, 3, 3), free={2, 5}, group=5, auto_pad="SAME_UPPER")
case("Conv", (2, 5, 4, 4), (15, 1, 3, 3), (15,), free={2, 3, 5}, group=5)
case("ConvTranspose", (2, 3, 4), (3, 5, 4), (5,), free={2, 3, 5}, strides=[2])
case("ConvTranspose", (2, 15, 4, 4), (15, 7, 2, 2), (21,), free={2, 3, 5, 7}, group=3, strides=[2, 2])
case("ConvTranspose", (2, 5, 4, 4), (5, 3, 2, 2), free={2, 3, 5}, group=5)

# Pooling passes channels; the indices of MaxPool count through them.
case("AveragePool", (2, 3, 4, 4), free={2, 3}, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
case("LpPool", (2, 3, 4, 4), free={2, 3}, kernel_shape=[2, 2])
case("GlobalAveragePool", (2, 3, 4, 5), free={2, 3, 4, 5})
case("GlobalAveragePool", (2, 3, 4), free={2, 3, 4})
case("GlobalMaxPool", (2, 3, 4), free={2, 3, 4})
case("GlobalLpPool", (2, 3, 4, 4), free={2, 3})
case("MaxPool", (2, 3, 4, 4), free={2, 3}, kernel_shape=[3, 3], ceil_mode=1)
case("MaxPool", (2, 3, 4, 4), free=set(), kernel_shape=[3, 3], outputs=2)

# Only axes that are not resampled pass.
case("Resize", (2, 3, 4, 4), None, floats(1, 1, 2, 2), free={2, 3}, mode="linear")
case("Resize", (2, 3, 4, 5), None, floats(1, 1, 0.5, 1), free={2, 3, 5})
case("Resize", (2, 3, 4, 4), None, None, [2, 3, 7, 7], free={2, 3}, mode="cubic")
case("Resize", (2, 3, 4, 4), None, None, [7, 7], free={2, 3}, axes=[2, 3], mode="linear")
case("Resize", (2, 3, 5, 4), None, None, [5, 7], free={2, 3, 5}, axes=[2, 3], mode="linear")
case("Resize", (2, 3, 4, 4), floats(), floats(1, 1, 2, 2), free={2, 3}, opset=11, mode="nearest")
case("Resize", (2, 3, 4, 4), floats(1, 1, 2, 2), free={2, 3}, opset=10)
case(
    "Resize", (2, 3, 4, 4), None, floats(1, 1, 1.2, 1), free={2, 3, 4}, mode="linear",
)  # fmt: skip
case(
    "Resize", (5, 3, 2, 4), None, None, [1, 3], free={3, 5}, axes=[2, 3], keep_aspect_ratio_policy="not_smaller",
)  # fmt: skip
case("Upsample", (2, 3, 4, 4), floats(1, 1, 2, 2), free={2, 3}, opset=9)

# Blocks: the channels are one factor, the block another.
case("DepthToSpace", (2, 12, 5, 7), free={2, 3}, blocksize=2, mode="DCR")
case("DepthToSpace", (2, 12, 5, 7), free={2, 3}, blocksize=2, mode="CRD")
case("DepthToSpace", (2, 12, 5, 7), free={2, 3}, blocksize=2, opset=9)
case("SpaceToDepth", (2, 3, 10, 14), free={2, 3}, blocksize=2)


# A row that sees its neighbours only keeps its place.
QKV = ((2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13))
if defs.onnx_opset_version() >= 25:
    case("Attention", *QKV, free={2, 3, 11, 13}, opset=25, left_window_size=1, right_window_size=2)
    case("Attention", *QKV, free={2, 3, 11, 13}, opset=25, right_window_size=0)
    case("Attention", *QKV, free={2, 3, 5, 11, 13}, opset=25, left_window_size=-1)

# Units alone.
case("Cast", (2, 3), free={2, 3}, to=TensorProto.FLOAT16)
case("Cast", (2, 3), free={2, 3}, to=TensorProto.INT32, opset=9)
case("CastLike", (2, 3), np.zeros((5,), np.float16), free={2, 3, 5})
case("Clip", (2, 3), scalar(0.3), scalar(0.6), free={2, 3})
case("Clip", (2, 3), free={2, 3}, opset=7, min=0.3, max=0.6)
case("Dropout", (2, 3), free={2, 3}, outputs=2)
case("Dropout", (2, 3), free={2, 3}, opset=10, ratio=0.5)
case("Not", fed([[1, 0, 1], [0, 0, 1]], bool), free={2, 3}, opset=9)

# Broadcasting: aligned at the right, 1 stretches.
case("Add", (2, 3, 5), (2, 3, 5), free={2, 3, 5})
case("Add", (2, 3, 5), (5,), free={2, 3, 5})
case("Add", (2, 3, 5), (3, 1), free={2, 3, 5})
case("Add", (5,), (2, 3, 1), free={2, 3, 5})
case("Mul", (2, 3, 5), scalar(2), free={2, 3, 5})
case("Mul", (2, 3, 4, 4), (2, 3, 1, 1), free={2, 3, 4})
case("Sub", (2, 1, 5), (1, 3, 1), free={2, 3, 5})
case("Div", (2, 3), (2, 3), free={2, 3}, opset=7)
case("Sum", (2, 3), (3,), (2, 1), free={2, 3})
case("Mean", (2, 3), (2, 3), free={2, 3}, opset=8)
case("Max", (2, 3), (3,), (1, 1), free={2, 3})
case("Min", (2, 3), (2, 1), free={2, 3})
case("Pow", (2, 3), scalar(2), free={2, 3})
case("PRelu", (2, 3, 5, 7), (3, 1, 1), free={2, 3, 5, 7})
case("PRelu", (2, 3, 5, 7), (1,), free={2, 3, 5, 7})
case("PRelu", (2, 3, 5, 7), (3, 5, 7), free={2, 3, 5, 7})
case("Where", fed([[1], [0]], bool), (2, 3), (3,), free={2, 3})
case("Where", fed([1, 0, 1], bool), (2, 3), scalar(0), free={2, 3})
case("Greater", (2, 3), (3,), free={2, 3}, opset=9)
case("GreaterOrEqual", (2, 3), (3,), free={2, 3}, opset=16)
case("GreaterOrEqual", (2, 3), (3,), free={2, 3}, opset=12)
case("Mod", (2, 3), (3,), free={2, 3}, fmod=1)
for _kind in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    case(_kind, fed([[1, 2, 3], [4, 5, 6]]), fed([4, 2, 7]), free={2, 3})
case("BitShift", fed([[1, 2, 3], [4, 5, 6]], np.uint8), fed([1, 2, 3], np.uint8), free={2, 3}, direction="LEFT")
case("BitwiseNot", fed([[1, 2, 3], [4, 5, 6]]), free={2, 3})

# Products of matrices.
case("Gemm", (2, 3), (3, 5), (5,), free={2, 3, 5})
case("Gemm", (2, 3), (3, 5), (2, 1), free={2, 3, 5}, alpha=0.5, beta=2.0)
case("Gemm", (2, 3), (3, 5), (2, 5), free={2, 3, 5})
case("Gemm", (2, 3), (3, 5), (1, 5), free={2, 3, 5}, opset=9)
case("Gemm", (2, 3), (3, 5), (1,), free={2, 3, 5})
case("Gemm", (2, 3), (3, 5), scalar(2), free={2, 3, 5}, opset=7)
case("Gemm", (3, 2), (3, 5), (5,), free={2, 3, 5}, transA=1)
case("Gemm", (2, 3), (5, 3), (5,), free={2, 3, 5}, transB=1)
case("Gemm", (3, 2), (5, 3), free={2, 3, 5}, transA=1, transB=1)
case("MatMul", (2, 3), (3, 5), free={2, 3, 5})
case("MatMul", (7, 2, 3), (3, 5), free={2, 3, 5, 7})
case("MatMul", (2, 3), (7, 3, 5), free={2, 3, 5, 7})
case("MatMul", (11, 1, 2, 3), (7, 3, 5), free={2, 3, 5, 7, 11})
case("MatMul", (3,), (3, 5), free={3, 5})
case("MatMul", (2, 3), (3,), free={2, 3})
case("MatMul", (7, 2, 3), (3,), free={2, 3, 7})
case("MatMul", (3,), (7, 3, 5), free={3, 5, 7})
case("MatMul", (3,), (3,), free={3})
case("Einsum", (2, 3), (3, 5), free={2, 3, 5}, equation="ij,jk->ik")
case("Einsum", (2, 3, 5), (2, 7, 5), free={2, 3, 5, 7}, equation="bqd, bkd -> bqk")
case("Einsum", (2, 3, 5), (5, 7, 11), free={2, 3, 5, 7, 11}, equation="...d,dhe->...he")
case("Einsum", (2, 3, 5, 7), (2, 3, 7, 11), free={2, 3, 5, 7, 11}, equation="...ij,...jk")
case("Einsum", (2, 3, 5), free={2, 3, 5}, equation="abc->ca")
case("Einsum", (2, 3, 3), free=set(), equation="bii->bi")
case("Einsum", (2, 3), (3,), (5, 3), free={2, 3, 5}, equation="ij,j,kj->ik")

# Sums of integers, which copies share in whole parts; more in test_quantized.py.
CODES = fed(np.arange(96).reshape(2, 3, 4, 4) % 7, np.uint8)
KERNELS = (np.arange(21).reshape(7, 3, 1, 1) - 9).astype(np.int8)
ZERO = (scalar(0.5), np.array(3, np.uint8))
case("ConvInteger", CODES, KERNELS, ZERO[1], free={2, 3, 7})
case("QLinearConv", CODES, *ZERO, KERNELS, scalar(0.5), np.array(0, np.int8), *ZERO, free={2, 3, 7})

# Axes laid end to end.
case("Concat", (2, 3), (2, 5), free={2, 3, 5}, axis=1)
case("Concat", (2, 3, 5), (2, 3, 5), free={2, 3, 5}, axis=-1)
case("Split", (2, 8), [3, 5], free={2, 3, 5}, outputs=2, axis=1)
case("Split", (2, 9), free={2, 3}, outputs=3, axis=1, opset=13)
case("Split", (2, 9), free={2, 3}, outputs=3, axis=-1, num_outputs=3)
case("Split", (2, 8), free={2, 3, 5}, outputs=2, axis=1, split=[3, 5], opset=11)
case("Split", (2, 9), free={2, 3}, outputs=3, axis=1, opset=11)
case("Slice", (2, 8), [0], [3], [1], free={2, 3, 5})
case("Slice", (2, 8), [3], [2**63 - 1], [1], free={2, 3, 5})
case("Slice", (2, 8), [-5], [2**31 - 1], [-1], [1], free={2, 3, 5})
case("Slice", (2, 10), [2], [-5], [1], free={2, 3, 5})
case("Slice", (5, 8), [2, 3], [5, 100], free={2, 3, 5})
case("Slice", (2, 8), [0], [8], [1], [2], free={2, 4})
case("Slice", (2, 8), [1], [2**31 - 1], [1], [2], free={2, 4})
case("Slice", (2, 8), [7], [-9], [1], [-1], free={2, 8})
case("Slice", (2, 8), [1], [7], [1], [3], free={2, 8})
case("Slice", (2, 8), free={2, 3, 5}, opset=9, starts=[3], ends=[8], axes=[1])
case("Pad", (2, 3), [0, 1, 0, 2], scalar(7), free={2, 3})
case("Pad", (2, 3, 4), [0, 0, 1, 0, 0, 1], free={2, 3}, mode="reflect")
case("Pad", (2, 3), [0, -1, 0, 0], free={2})
case("Pad", (2, 3), free={2, 3}, opset=10, pads=[0, 1, 0, 2], value=0.5)
case("Pad", (2, 3), [1, 2], None, [1], free={2, 3})

# Axes are products.
case("Reshape", (2, 15), [2, 3, 5], free={2, 3, 5})
case("Reshape", (2, 15), [0, 3, -1], free={2, 3, 5})
case("Reshape", (2, 15), [0, -1, 5], free={2, 3, 5})
case("Reshape", (2, 3, 5), [0, -1], free={2, 3, 5})
case("Reshape", (2, 3, 5), [30], free={2, 3, 5})
case("Reshape", (2, 3, 5), [6, 1, 5], free={2, 3, 5}, allowzero=1, opset=14)
case("Reshape", (2, 3, 5), [2, -1], free={2, 3, 5}, opset=7)
case("Reshape", (2, 6, 35), [2, 42, 5], free={2, 5, 6, 7})
case("Reshape", (4, 6), [6, 4], free=set())
case("Flatten", (2, 3, 5), free={2, 3, 5})
case("Flatten", (2, 3, 5), free={2, 3, 5}, axis=2)
case("Flatten", (2, 3, 5), free={2, 3, 5}, axis=0, opset=9)
case("Flatten", (2, 3, 5), free={2, 3, 5}, axis=-1)
case("Squeeze", (2, 1, 3, 1), [1], free={2, 3})
case("Squeeze", (2, 1, 3, 1), free={2, 3})
case("Squeeze", (2, 1, 3), free={2, 3}, axes=[1], opset=11)
case("Unsqueeze", (2, 3), [1], free={2, 3})
case("Unsqueeze", (2, 3), free={2, 3}, axes=[0, 2], opset=11)
case("Transpose", (2, 3, 5), free={2, 3, 5})
case("Transpose", (2, 3, 5), free={2, 3, 5}, perm=[1, 2, 0])
case("Expand", (3, 1), [2, 3, 5], free={2, 3, 5})
case("Expand", (2, 3), [1, 1], free={2, 3})
case("Expand", (2, 3), [3], free={2, 3})
case("Tile", (2, 3), [1, 5], free={2, 3})
case("Tile", (2, 1), [1, 5], free={2, 5})
case("ConstantOfShape", [2, 3], free={2, 3})

# Units in other places.
case("Gather", (2, 5), [4, 2, 0, 3, 1], free={2, 5}, axis=1)
case("Gather", (2, 5), [0, -1], free={2, 5}, axis=-1)
case("Gather", (2, 5), [1, 1, 0], free={2, 5}, axis=1)
case("Gather", (7, 3), np.array([[1, 5], [2, 2]]), free={2, 3})
case("Gather", (7, 3), np.array(4), free={3})

case("OneHot", fed([[1, 2, 3], [0, 1, 2]]), np.array(4), floats(0, 1), free={2, 3})
case("OneHot", fed([[1, 2, 3], [0, 1, 2]]), np.array(4), floats(0, 1), free={2, 3}, axis=1)

# Statistics over an axis.
BN = ((3,), (3,), (3,), (3,))
case("BatchNormalization", (2, 3, 5, 7), *BN, free={2, 3, 5, 7})
case("BatchNormalization", (2, 3), *BN, free={2, 3}, opset=9)
case("BatchNormalization", (2, 3, 5), *BN, free={2, 3, 5}, training_mode=1, outputs=3)
case("BatchNormalization", (2, 3, 5), *((3, 5),) * 4, free=set(), opset=7, spatial=0)
case("InstanceNormalization", (2, 3, 5, 7), (3,), (3,), free={2, 3, 5, 7})
case("GroupNormalization", (2, 15, 7), (3,), (3,), free={2, 3, 5, 7}, num_groups=3)
case("GroupNormalization", (2, 15, 7), (15,), (15,), free={2, 3, 5, 7}, num_groups=3, opset=21)
case("LayerNormalization", (2, 3, 5), (5,), (5,), free={2, 3, 5})
case("LayerNormalization", (2, 3, 5), (3, 5), free={2, 3, 5}, axis=1)
case("LayerNormalization", (2, 3, 5), (5,), None, free={2, 3, 5}, outputs=3)
case("MeanVarianceNormalization", (2, 3, 5, 7), free={2, 3, 5, 7})
case("MeanVarianceNormalization", (2, 3, 5), free={2, 3, 5}, axes=[1, 2])
case("LRN", (2, 3, 4, 4), free={2, 4}, size=3)
case("LpNormalization", (2, 3, 5), free={2, 3}, p=2)
case("Softmax", (2, 3, 5), free={2, 3, 5})
case("Softmax", (2, 3, 5), free={2, 3, 5}, axis=1)
case("Softmax", (2, 3, 5), free={2}, axis=1, opset=11)
case("LogSoftmax", (2, 3, 5), free={2, 3}, axis=-1)
case("Hardmax", (2, 3, 5), free={2, 3}, axis=-1)

# Samples of images and of signals: each channel alone.
case("DeformConv", (2, 3, 4, 4), (5, 3, 2, 2), (2, 8, 3, 3), free={2, 3, 5}, opset=19)
case("GridSample", (2, 3, 4, 4), (2, 6, 6, 2), free={2, 3})
case("RoiAlign", (2, 3, 6, 6), (5, 4), [0, 1, 1, 0, 1], free={3}, output_height=4, output_width=4)
case("MaxRoiPool", (1, 3, 6, 6), np.array([[0, 1, 1, 4, 4]] * 2, FLOAT), free={3}, pooled_shape=[4, 4])
case("ReverseSequence", (4, 2, 3), [4, 3], free={3})
case("STFT", (2, 32, 1), np.array(4), None, np.array(8), free={2})

# Sums over an axis, by each law.
for _kind in (f"Reduce{law}" for law in ("Sum", "L1", "LogSum", "Mean", "L2", "SumSquare", "Max", "Min")):
    case(_kind, (2, 3, 5), [1], free={2, 3, 5})
    case(_kind, (2, 3, 5), [-1], free={2, 3, 5}, keepdims=0)
    case(_kind, (2, 3, 5), free={2, 3, 5}, opset=11, axes=[1])
case("ReduceProd", (2, 3, 5), [1], free={2, 5})
case("ReduceLogSumExp", (2, 3, 5), [1], free={2, 5})
case("ReduceSum", (2, 3, 5), [1, 2], free={2, 3, 5})
case("ReduceMean", (2, 3, 4, 4), [2, 3], free={2, 3, 4})
case("ReduceSum", (2, 3, 5), free={2, 3, 5})
case("ReduceSum", (2, 3, 5), free={2, 3, 5}, noop_with_empty_axes=1)
case("ReduceSum", fed([[1, 2, 3], [4, 5, 6]]), [1], free={2})
case("ArgMax", (2, 3, 5), free={2, 5}, axis=1)
case("ArgMin", (2, 3, 5), free={2, 3}, axis=-1, keepdims=0)

NEVER_FREE = {
    "Constant": "its readers read it as an initializer",
    "Shape": "makes sizes; the rewriting looks after those",
    "Size": "makes sizes",
    "Range": "counts",
    "EyeLike": "its units are tied in pairs",
    "RandomNormal": "draws values that copies would have to share",
    "RandomUniform": "draws values that copies would have to share",
}
"""Operators with rules that leave no dim free, and why."""


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=pytest.mark.xfail(strict=True, reason=row.problem) if row.problem else ())
        for row in TABLE
    ],
)
def test_a_grown_operator_computes_grown_outputs(row: Case) -> None:
    rng = np.random.default_rng(7)
    for _ in range(2):
        conform(*row.model(rng), rng)
    assert row.free_sizes() == row.free


# --- Every way to write a range -------------------------------------------------------------------------------------

LARGEST = 2**63 - 1
PLACES = (0, 1, 4, 6, 7, LARGEST, -1, -4, -6, -7, -LARGEST)
STEPS = (1, 2, 3, -1, -2)


def _many(nodes: dict[str, onnx.NodeProto], array: np.ndarray, opset: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """One model of independent nodes, each with an input of its own, with constants by the names that nodes read."""
    feeds = {f"x {name}": array for name in nodes}
    read = {name for node in nodes.values() for name in node.input} - set(feeds)
    constants = {name: np.array([int(number) for number in name.split(",")], np.int64) for name in read if name}
    return build(nodes.values(), feeds, [node.output[0] for node in nodes.values()], constants, opset=opset), feeds


@pytest.mark.parametrize("form", ["inputs", "attributes", "two axes"])
def test_a_range_means_the_same_units_however_its_ends_are_written(form: str) -> None:
    """All signs, steps, and places beyond the ends, each on an axis of 6 units that grows."""
    nodes, sizes = {}, {}
    for start, end, step in itertools.product(PLACES, PLACES, STEPS):
        taken = len(range(6)[start:end:step])
        if not taken or (form == "attributes" and step != 1) or (form == "two axes" and step not in (1, 2)):
            continue
        name = f"[{start}:{end}:{step}]"
        places = {"starts": [start], "ends": [end], "axes": [1]}
        if form == "attributes":
            nodes[name] = helper.make_node("Slice", [f"x {name}"], [f"y {name}"], **places)
        else:
            both = (f"-1,{start}", f"{LARGEST},{end}", "", f"1,{step}")
            given = both if form == "two axes" else (str(start), str(end), "-2", str(step))
            nodes[name] = helper.make_node("Slice", [f"x {name}", *given], [f"y {name}"])
        sizes[name] = taken
    proto, feeds = _many(nodes, np.random.default_rng(0).random((2, 6, 3), FLOAT), 9 if form == "attributes" else 18)
    conform(proto, feeds, np.random.default_rng(1))
    analysis = analyse_open(load(proto))
    for name, taken in sizes.items():
        step = int(name.strip("[]").split(":")[2])
        if f"y {name}" not in analysis.axes:  # onnx infers no shape from an attribute in front of the axis
            continue
        is_free = any(not dim.frozen for dim in leaves(analysis.axes[f"y {name}"][1]))
        assert is_free == (taken > 1 and (form != "two axes" or step == 1 or taken * step == 6)), name


# --- The operators' own cases -------------------------------------------------------------------------------------

# Inputs that choose a shape or a mode, whatever their type.
PARAMETERS = {"Resize", "Upsample", "Clip", "Pad", "Dropout", "ConstantOfShape", "Range", "Tile", "Expand", "Reshape"}
PLAIN = ("bool", "float16", "float32", "float64", *(f"{sign}int{8 << k}" for sign in ("", "u") for k in range(4)))
BACKEND_PROBLEMS: dict[str, str] = {}


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.name in PLAIN and value.size > 0


def _is_parameter(node: onnx.NodeProto, place: int, value: np.ndarray) -> bool:
    if place == 0:
        return node.op_type in ("ConstantOfShape", "Range")
    return node.op_type in PARAMETERS or (value.ndim <= 1 and value.dtype.kind in "iu")


@functools.cache
def backend_cases() -> dict[str, list[Case]]:
    """The cases of `onnx.backend.test` that are one node on plain tensors, by operator."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    cases = defaultdict(list)
    for test in tests:
        if test.model is None:  # older versions list what they would download
            continue
        graph, node = test.model.graph, test.model.graph.node[0]
        operands = dict(zip([value.name for value in graph.input], test.data_sets[0][0], strict=True))
        random = node.op_type == "Dropout" and "training" in test.name
        operands = {name: np.asarray(a) if isinstance(a, np.generic) else a for name, a in operands.items()}
        if len(graph.node) > 1 or node.domain or random or not all(map(_is_plain, operands.values())):
            continue
        places = [(place, name) for place, name in enumerate(node.input) if name]
        fixed = frozenset(name for place, name in places if _is_parameter(node, place, operands[name]))
        opset = min(max(test.model.opset_import[0].version, 7), LAST_OPSET)
        cases[node.op_type].append(Case(test.name, node, opset, operands, fixed))
    return cases


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.xfail(strict=True, reason=BACKEND_PROBLEMS[kind]))
        if kind in BACKEND_PROBLEMS
        else kind
        for kind in dict.fromkeys(kind for domain, kind, _ in supported() if not domain)
        if kind not in ("Shape", "Size", "Constant")  # no activation follows their inputs
    ],
)
def test_the_operators_own_cases_hold_when_grown(kind: str) -> None:
    rng = np.random.default_rng(11)
    for row in backend_cases().get(kind, ()):
        try:
            proto, feeds = row.model(rng)
        except Exception:  # neither onnxruntime nor the reference runs it ungrown
            continue
        try:
            conform(proto, feeds, rng)
        except Exception as error:
            raise AssertionError(f"{row.name}: {error}") from error


def _free_or_empty(row: Case) -> frozenset[int]:
    try:
        return row.free_sizes()
    except Exception:  # neither onnxruntime nor the reference runs it
        return frozenset()


def test_every_rule_is_exercised_on_a_dim_that_grows() -> None:
    exercised = set()
    for row in (*TABLE, *(row for rows in backend_cases().values() for row in rows)):
        key = (row.node.op_type, lookup("", row.node.op_type, row.opset))
        if key in exercised:
            continue
        if row.free or (row.free is None and _free_or_empty(row)):
            exercised.add(key)
    for domain, kind, since in supported():
        if domain == "" and kind not in (*NEVER_FREE, *FIXED) and defs.has(kind, LAST_OPSET):
            assert (kind, lookup(domain, kind, since)) in exercised, f"no case grows {kind}-{since}"


# --- What a rule says of zeros ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", dict.fromkeys(kind for domain, kind, _ in supported() if not domain))
def test_operators_said_to_keep_zero_do(kind: str) -> None:
    for row in backend_cases().get(kind, ()):
        try:
            proto, feeds = row.model()
        except Exception:  # neither onnxruntime nor the reference runs it
            continue
        said = analyse_open(load(proto)).said.get(0)
        if said is None or said.pointwise not in ("zero", "relu") or (row.fixed and kind not in PARAMETERS):
            continue
        first, *_ = run(proto, {name: np.zeros_like(array) for name, array in feeds.items()})
        assert not np.any(first), f"{row.name} says {said.pointwise!r}"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of rules, put back afterwards."""
    mine = {key: list(value) for key, value in rules._registry.items()}
    monkeypatch.setattr(rules, "_registry", mine)
    return mine


# --- What a rule overlooks ----------------------------------------------------------------------------------------

ENOUGH = 100  # cases of an operator, from which what its rule reads is told


def _analysed(node: onnx.NodeProto, row: Case) -> Analysis:
    model = row.model()[0]
    model.graph.node[0].CopyFrom(node)
    return analyse_open(load(model))


def _odd(attribute: defs.OpSchema.Attribute) -> Any:
    """A value that no default is."""
    kind = attribute.type.name
    value = {"INT": 3, "FLOAT": 0.123, "STRING": "odd"}.get(kind.removesuffix("S"))
    return [value] if kind.endswith("S") and value is not None else value


def test_what_a_newer_operator_set_brings_freezes_until_a_rule_declares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk all schemas of the installed onnx; this says which attributes and operands no rule declares yet."""
    seen: dict[str, list[Op]] = defaultdict(list)

    class Noted(Op):
        def __init__(self, kind: str, *args: Any, **options: Any) -> None:
            super().__init__(kind, *args, **options)
            seen[kind].append(self)

    monkeypatch.setattr(inference, "Op", Noted)
    rows: dict[str, list[Case]] = defaultdict(list)
    for row in (*TABLE, *(row for cases in backend_cases().values() for row in cases)):
        if len(seen[row.node.op_type]) < ENOUGH:
            with contextlib.suppress(Exception):  # neither onnxruntime nor the reference runs it
                rows[row.node.op_type].append(row) if growable(analyse_open(load(row.model()[0]))) else None
    new = []
    for schema in defs.get_all_schemas_with_history():
        kind, ops = schema.name, seen[schema.name]
        if schema.domain or kind in NEVER_FREE or not rows[kind] or schema.since_version < 7:
            continue
        asked = inert.table().get(("", kind), set()).union(*(op.attrs.asked for op in ops))
        new += [(kind, name, attribute) for name, attribute in schema.attributes.items() if name not in asked]
        read = set().union(*(op.read for op in ops))
        operands = [("input", k, part) for k, part in enumerate(schema.inputs)]
        operands += [("output", k, part) for k, part in enumerate(schema.outputs)]
        for what, index, part in operands:
            if (what, index) not in read and part.option != defs.OpSchema.FormalParameterOption.Variadic:
                warnings.warn(
                    f"the rule of {kind}-{schema.since_version} overlooks its {what} {part.name}", stacklevel=1
                )
    for kind, name, attribute in new:
        warnings.warn(f"the rule of {kind} does not know its attribute {name}", stacklevel=1)
        row = rows[kind][0]
        node = onnx.NodeProto()
        node.CopyFrom(row.node)
        node.attribute.append(helper.make_attribute(name, _odd(attribute)))
        assert not growable(_analysed(node, row)), f"{kind} grows with an unknown {name}"


def grown_with(kind: str, *operands: Any, **options: Any) -> dict[int, str | None]:
    """The reasons of the dims of a node by their sizes, None where they may grow."""
    attrs, outputs = options.pop("attrs", {}), options.pop("outputs", [(2, 3)])
    dims = [tuple(map(Dim, shape)) for shape in (*operands, *outputs)]
    op = Op(kind, "node", dims[: len(operands)], dims[len(operands) :], attrs=attrs, **options)
    lookup(op.domain, kind, op.version)(op)  # type: ignore[misc]
    return {dim.size: dim.frozen for axes in dims for axis in axes for dim in leaves(axis)}


def test_an_attribute_that_a_rule_does_not_know_freezes_the_node() -> None:
    assert grown_with("Relu", (2, 3)) == {2: None, 3: None}
    (reason,) = set(grown_with("Relu", (2, 3), attrs={"novelty": 1}).values())
    assert reason is not None
    assert reason.startswith("Relu 'node' has the attribute 'novelty', of which its growth rule knows nothing")
    assert grown_with("Elu", (2, 3), attrs={"alpha": 0.5}) == {2: None, 3: None}


def test_an_attribute_that_is_the_default_of_the_schema_is_none() -> None:
    assert grown_with("SpaceToDepth", (2, 3, 10, 14), outputs=[(2, 12, 5, 7)], attrs={"blocksize": 2})[3] is None
    attrs = {"noop_with_empty_axes": 0, "keepdims": 1, "axes": [1]}
    assert grown_with("ReduceProd", (2, 3), outputs=[(2, 1)], version=18, attrs=attrs)[2] is None


def test_an_operand_that_a_rule_does_not_know_freezes_the_node() -> None:
    (reason,) = set(grown_with("Relu", (2, 3), (2, 3), (5,)).values())
    assert "has the input 2, of which its growth rule knows nothing" in (reason or "")
    (reason,) = set(grown_with("Relu", (2, 3), outputs=[(2, 3), (5,)]).values())
    assert "has the output 1, of which its growth rule knows nothing" in (reason or "")


@pytest.mark.usefixtures("registry")
def test_attributes_of_ones_own_operator_are_read_or_inert() -> None:
    signature("Mine", "*b c -> *b c", domain="my.company", inert="gain name")
    own = {"domain": "my.company"}
    assert grown_with("Mine", (2, 3), attrs={"gain": 2.0, "name": "a"}, **own) == {2: None, 3: None}
    assert all(grown_with("Mine", (2, 3), attrs={"group": 2}, **own).values())

    @rule("Mine", domain="my.company")
    def mine(op: Op) -> None:
        op.apply("*b c -> *b c", fixed="c" if op.attrs.get("group") else "")

    assert grown_with("Mine", (2, 3), attrs={"group": 2}, **own)[2] is None
    assert "see `inert`" in str(grown_with("Mine", (2, 3), attrs={"group": 2, "gain": 2.0}, **own)[2])


# --- Rules of one's own -------------------------------------------------------------------------------------------


def speaker(domain: str, kind: str, version: int) -> str | None:
    """The last word of the reason that the rule froze its dims with, to tell which spoke."""
    found = lookup(domain, kind, version)
    dim = Dim(2)
    if found is not None:
        found(Op(kind, "", [(dim,)], [(Dim(2),)], domain=domain, version=version))
    return (dim.frozen or "").split()[-1] if found is not None else None


@pytest.mark.usefixtures("registry")
def test_the_newest_rule_that_fits_the_opset_is_used() -> None:
    rule("Mine", domain="my.company", since=3)(lambda op: op.freeze_all("new"))
    rule("Mine", domain="my.company")(lambda op: op.freeze_all("old"))
    assert [speaker("my.company", "Mine", version) for version in (0, 1, 2, 3, 9)] == [None, "old", "old", "new", "new"]
    assert lookup("", "Mine", 9) is None
    assert [entry[2] for entry in supported() if entry[1] == "Mine"] == [1, 3]


@pytest.mark.usefixtures("registry")
def test_a_later_registration_replaces_the_rule_of_the_same_version() -> None:
    rule("Relu")(lambda op: op.freeze_all("mine"))
    assert speaker("ai.onnx", "Relu", 13) == "mine"


@pytest.mark.usefixtures("registry")
def test_a_signature_is_a_rule() -> None:
    signature("MyLinear", "*b k, n k -> *b n", domain="my.company", scales=(1,), pointwise="zero")
    x, w, y = (Dim(2), Dim(7), Dim(3)), (Dim(5), Dim(3)), (Dim(2), Dim(7), Dim(5))
    op = Op("MyLinear", "node", [x, w], [y], domain="my.company")
    lookup("my.company", "MyLinear", 1)(op)  # type: ignore[misc]
    (contraction,) = op.said.contractions
    assert contraction.sides == ((0, 2), (1, 1))
    assert op.said.scales == {1}
    assert op.said.pointwise == "zero"


def test_operators_without_a_rule_freeze_their_dims_and_say_how_to_add_one(registry: Registry) -> None:
    del registry["", "Relu"]
    row = Case("Relu", helper.make_node("Relu", ["x"], ["y"]), 14, {"x": np.ones((2, 3), FLOAT)}, frozenset())
    analysis = analyse_open(load(row.model()[0]))
    assert not growable(analysis)
    for dim in analysis.dims():
        assert "'y' has no growth rule (Relu, opset 14" in (dim.frozen or "")
        assert "onnx_net2net.rules.rule" in (dim.frozen or "")
