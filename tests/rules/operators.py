"""Cases of every operator with a rule: a node, its inputs, and the sizes of the dims that are to be free."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from graphs import LAST_OPSET, analyse_open, build, growable
from onnx import TensorProto, defs, helper

from onnx_net2net.model.model import load

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
# An axis of which each place is a window passes.
case("MaxPool", (2, 3, 4, 5), free={2, 3, 5}, kernel_shape=[2, 1], strides=[2, 1], pads=[1, 0, 1, 0])
case("MaxPool", (2, 3, 4, 5), free={2, 3}, kernel_shape=[1, 1], strides=[2, 2])
case("AveragePool", (2, 3, 4, 5), free={2, 3, 5}, kernel_shape=[2, 1], pads=[0, 0, 1, 0], count_include_pad=1)
case("AveragePool", (2, 3, 4, 5), free={2, 3}, kernel_shape=[2, 1], strides=[1, 2])
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
