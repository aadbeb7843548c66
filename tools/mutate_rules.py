"""Break the growth rules one at a time, and see whether a test notices.

Each mutation replaces one piece of text of the package in a copy of it, and runs the few tests that should fail. One
that no test notices survives: either the tests lack a case, or the change means the same.

    python tools/mutate_rules.py
    python tools/mutate_rules.py --only Attention --jobs 2
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_corpus import markdown

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "onnx_net2net"
TIMEOUT = 600.0
PRELOAD = ["hypothesis", "numpy", "onnx", "onnx.backend.test", "onnx.reference", "onnx_graphsurgeon", "onnx_ir",
           "onnxruntime", "pytest", "rich.progress"]  # fmt: skip
"""What takes long to import and is not broken: the processes that run tests are forked from one that has it."""


@dataclass(frozen=True)
class Mutation:
    """A fault put into the package.

    Attributes:
        file: In the package.
        what: The rule and what is wrong with it.
        old: Text that occurs once in the file.
        new: What is put in its place.
        tests: Test file without "test_" and ".py", and an expression for ``-k``; tests that are elsewhere are found.
    """

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a mutation did: the first test that failed (None if none did), and how long it took."""

    mutation: Mutation
    killer: str | None
    seconds: float


def grown(*kinds: str) -> tuple[str, str]:
    """Select the cases of some operators in the table of test_rules.py."""
    return "rules", " or ".join(f"outputs[{kind}-" for kind in kinds)


def indexed(*kinds: str) -> tuple[str, str]:
    """Select the cases of some operators in the table of test_indexing.py."""
    return "indexing", " or ".join(f"grown_outputs[{kind}-" for kind in kinds)


def contrib(*words: str) -> tuple[str, str]:
    """Select tests of test_contrib.py."""
    return "contrib", " or ".join(words)


def attention(*words: str) -> tuple[str, str]:
    """Select tests of test_attention.py."""
    return "attention", " or ".join(words)


def widened(*words: str) -> tuple[str, str]:
    """Select tests of test_widen.py and its neighbours."""
    return "widen", " or ".join(words)


def mutants(*words: str) -> tuple[str, str]:
    """Select tests of test_mutants.py."""
    return "mutants", " or ".join(words)


def quantized(*kinds: str) -> tuple[str, str]:
    """Select the cases of some operators in the table of test_quantized.py."""
    return "quantized", " or ".join(f"grown_outputs[{kind}-" for kind in kinds)


def quantized_graphs(*words: str) -> tuple[str, str]:
    """Select other tests of test_quantized.py."""
    return "quantized", " or ".join(words)


def interface(*words: str) -> tuple[str, str]:
    """Select tests of test_interface.py."""
    return "interface", " or ".join(words)


def normalised(*words: str) -> tuple[str, str]:
    """Select tests of test_norms.py."""
    return "norms", " or ".join(words)


def sequences(*words: str) -> tuple[str, str]:
    """Select tests of test_sequences.py."""
    return "sequences", " or ".join(words)


def inferred(*words: str) -> tuple[str, str]:
    """Select tests of test_inference.py."""
    return "inference", " or ".join(words)


def algebra(*words: str) -> tuple[str, str]:
    """Select tests of test_dims.py."""
    return "dims", " or ".join(words)


def maps(*words: str) -> tuple[str, str]:
    """Select tests of test_maps.py."""
    return "maps", " or ".join(words)


CONV = '"n (g i) *x, (g o) i *k, (g o) -> n (g o) *y", sizes={"g": "group"}'
CONV_TRANSPOSE = '"n (g i) *x, (g i) o *k, (g o) -> n (g o) *y", sizes={"g": "group"}'
GROUP_NORM = '"n (g c) *x, (g c), (g c) -> n (g c) *x", since=21, sizes={"g": "num_groups"}, uniform="c x"'
ROTARY = "rules/attention.py"
LAYER_UNIFORM = 'op.uniform(axes[at:], "layer", scale=1, shift=2)'
RMS_UNIFORM = 'op.uniform(axes[at:], "rms", scale=1)'

RESHAPED = 'op.size(1, element, axis, instead={-1: None} if op.attrs.get("allowzero") else {-1: None, 0: copied})'
QUANTIZED_CONV = '{x}, *a, *b, (g o) i *k, *c, *d, *e, *f, (g o) -> {y}", sizes={"g": "group"}, fixed="x y k"'
CONV_INTEGER = '"n (g i) *x, (g o) i *k, *a, *b -> n (g o) *y", sizes={"g": "group"}, fixed="x y k"'
EXTREMES = 'op.only_copies(axis, "quantizes by the extremes of this tensor")'
COLUMNS = "_per_unit(op, index, b, len(b) - 1)"
FIRST_COPIES = "np.flatnonzero(maps[position].first)"

_ROWS: dict[str, list[tuple[str, str, str, tuple[str, str]]]] = {
    "rules/convolution.py": [
        ("Conv: groups outermost of the weight's rows", CONV, CONV.replace(", (g o) i", ", (o g) i"), grown("Conv")),
        ("Conv: groups outermost of the input", CONV, CONV.replace("n (g i)", "n (i g)"), grown("Conv")),
        ("Conv: groups outermost of the result", CONV, CONV.replace("-> n (g o)", "-> n (o g)"), grown("Conv")),
        ("Conv: the bias is not tied", CONV, CONV.replace(", (g o) ->", ", b ->"), grown("Conv")),
        ("Conv: all weights read all channels", CONV, CONV.replace(" i *k", " (g i) *k"), grown("Conv")),
        ("Conv: kernel and positions free", f'{CONV}, fixed="x y k"', CONV, grown("Conv")),
        ("Conv: no groups", CONV, CONV.replace('sizes={"g": "group"}', 'sizes={"g": 1}'), grown("Conv")),
        ("ConvTranspose: as Conv", CONV_TRANSPOSE, CONV, grown("ConvTranspose")),
        (
            "ConvTranspose: groups outermost of the bias",
            CONV_TRANSPOSE,
            CONV_TRANSPOSE.replace(", (g o) ->", ", (o g) ->"),
            grown("ConvTranspose"),
        ),
        ("AveragePool: positions free", 'op.freeze((a, b), "works along this axis")', "op.unify(a, b)",
         grown("AveragePool")),
        ("MaxPool: single places fixed", "_stays(op, position) and a.size", "False and a.size", grown("MaxPool")),
        ("LpPool: channels fixed", '"GlobalLpPool", "n c *x -> n c *y", fixed="x y"',
         '"GlobalLpPool", "n c *x -> n c *y", fixed="x y c"', grown("LpPool")),
        ("GlobalAveragePool: a sum", 'op.contract(axis, [(0, position)], "mean")', 'op.contract(axis, [(0, position)])',
         grown("GlobalAveragePool")),
        ("GlobalAveragePool: no contraction", 'op.contract(axis, [(0, position)], "mean")', "pass",
         grown("GlobalAveragePool")),
        ("GlobalMaxPool: positions may be more than copies", 'op.only_copies(axis, "takes an extreme over this axis")',
         "pass", mutants("extreme")),
        ("MaxPool: indices free", 'op.freeze(op.output(1), "returns indices that count through this axis")', "pass",
         grown("MaxPool")),
        ("Resize: a scale near 1 passes", "scales is not None and scales[listed.index(position)] != 1", "False",
         grown("Resize")),
        ("Resize: size of the wrong entry", "op.size(3, listed.index(position), b)", "op.size(3, 0, b)",
         grown("Resize")),
        ("DepthToSpace: modes swapped", '"(r s c)"\n    op.apply(f"n {channels} h w ->',
         '"(c r s)"\n    op.apply(f"n {channels} h w ->', grown("DepthToSpace")),
        ("SpaceToDepth: channels outermost",
         '"(r s c)"\n    op.apply(f"n c (',
         '"(c r s)"\n    op.apply(f"n c (',
         grown("SpaceToDepth")),
    ],
    "rules/elementwise.py": [
        ("unary: result not tied", 'op.apply("*x -> *x")\n        op.ignores(1)', "op.ignores(1)",
         ("rules", "every_rule_is_exercised")),
        ("CastLike: the input that gives the type is read", "op.ignores(1)", "pass", grown("CastLike")),
        ("unary: everything keeps zero", "op.pointwise(kind)", 'op.pointwise("zero")', ("rules", "keep_zero_do")),
        ("Clip: bounds above zero keep zero", 'if holds_zero else "any")', 'if holds_zero else "zero")',
         ("rules", "keep_zero_do and Clip")),
        ("Clip: result not tied",
         'op.apply("*x -> *x")\n    op.scalars(1, 2)\n    low, high',
         "op.scalars(1, 2)\n    low, high",
         grown("Clip")),
        ("Cast: all are linear", '"linear" if op.attrs.get("to") in fractions else "zero"', '"linear"',
         mutants("cast")),
        ("Dropout: mask not tied", '"*x -> *x, *x"', '"*x -> *x"', grown("Dropout")),
        ("broadcasting: only the first operand", "op.broadcast(op.inputs, result)",
         "op.broadcast(op.inputs[:1], result)", grown("Add", "Mul", "Where")),
        ("broadcasting: quotients keep zero", '"partial" if op.kind in ("Div", "Pow", "Mod") else "any"', '"zero"',
         ("rules", "keep_zero_do")),
        ("Mul and PRelu: missing scales", "op.scales(*range(len(op.inputs)))", "pass", mutants("one_by_one")),
    ],
    "rules/linear.py": [
        ("Gemm: transA ignored", '"k m" if op.attrs.get("transA", 0) else "m k"', '"m k"', grown("Gemm")),
        ("Gemm: transB ignored", '"n k" if op.attrs.get("transB", 0) else "k n"', '"k n"', grown("Gemm")),
        ("Gemm: bias on the wrong axes", "m~ n~ -> m n", "n~ m~ -> m n", grown("Gemm")),
        ("Gemm: result transposed", "m~ n~ -> m n", "m~ n~ -> n m", grown("Gemm")),
        ("MatMul: missing contraction", "op.contract(a[-1], [(0, len(a) - 1), (1, inner)])", "pass", grown("MatMul")),
        ("MatMul: weights on the wrong axis of B", "(1, inner)])", "(1, len(b) - 1)])", grown("MatMul")),
        ("MatMul: the last axis of B is summed", "len(b) - min(len(b), 2)", "len(b) - 1", grown("MatMul")),
        ("MatMul: leading axes not tied", "op.broadcast([a[:-2], b[:-2]]", "op.broadcast([]", grown("MatMul")),
        ("Einsum: sums over one operand are not weighed", "if len(holders) == 1:", "if len(holders) == 9:",
         grown("Einsum")),
        ("Einsum: diagonals pass", 'op.freeze_all("takes a diagonal")\n        return', "pass", grown("Einsum")),
        ("Einsum: implicit result has all letters", " if letters.count(x) == 1)", ")", grown("Einsum")),
    ],
    "rules/movement.py": [
        ("Concat: parts in the wrong order", "for axes in parts), target[at])", "for axes in parts[::-1]), target[at])",
         grown("Concat")),
        ("Split: parts in the wrong order", "for axes in parts), source[at])", "for axes in parts[::-1]), source[at])",
         grown("Split")),
        ("Split: sizes stay", "op.size(1, element, axes[at])", "pass", grown("Split")),
        ("Split: sizes in the attribute stay", 'op.attribute("split", axes[at], element=element)', "pass",
         grown("Split")),
        ("Slice: starts stay", '_bound(op, 1, "starts", element, source, inner[0])', "pass", grown("Slice")),
        ("Slice: ends forget what is before", '_bound(op, 2, "ends", element, source, *inner)',
         '_bound(op, 2, "ends", element, source, inner[1])', grown("Slice")),
        ("Slice: the part before is the result", "not op.unify(inner[1], target)", "not op.unify(inner[0], target)",
         grown("Slice")),
        ("Slice: steps may grow", 'op.freeze(factors[1], "takes every so many units of this axis")', "pass",
         grown("Slice")),
        ("Reshape: sizes stay", RESHAPED, "pass", grown("Reshape")),
        ("Reshape: innermost first", "op.unify(Product(xs), Product(ys),", "op.unify(Product(xs[::-1]), Product(ys),",
         grown("Reshape", "Flatten")),
        ("Transpose: default keeps the order", "range(len(axes))[::-1]", "range(len(axes))", grown("Transpose")),
        ("Transpose: inverse permutation",
         'op.unify_all([axes[a] for a in op.attrs.get("perm", range(len(axes))[::-1])], target)',
         'op.unify_all(axes, [target[a] for a in op.attrs.get("perm", range(len(axes))[::-1])])', grown("Transpose")),
        ("Expand: sizes stay", "op.size(1, element, axis, instead={1: None} if axis.size != 1 else {})", "pass",
         grown("Expand")),
        ("Tile: repetition innermost", 'Product((Dim(times, op.why("repeats this often")), a))',
         'Product((a, Dim(times, op.why("repeats this often"))))', grown("Tile")),
        ("Gather: inverse order", "places.reshape(-1) % data[at].size, 1)",
         "np.argsort(places.reshape(-1)) % data[at].size, 1)", grown("Gather")),
        ("Gather: constant places count as a sum", "op.freeze(data[at], LOOKED_UP)", "op.contract(data[at], [(0, at)])",
         grown("Gather")),
        ("Gather: computed places count as a sum", "op.look_up(data[at], 1)", "op.contract(data[at], [(0, at)])",
         interface("vocabulary")),
        ("Gather: the table is fixed", "op.look_up(data[at], 1)", "op.freeze(data[at], LOOKED_UP)",
         interface("vocabulary")),
        ("Pad: ends swapped", "Concat((Dim(before, reason), a, Dim(after, reason)))",
         "Concat((Dim(after, reason), a, Dim(before, reason)))", grown("Pad")),
        ("Pad: reflections pass", "elif constant and before >= 0", "elif before >= 0", grown("Pad")),
        ("Pad: anything keeps zeros", 'else "any")\n    listed', 'else "linear")\n    listed', ("mutants", "pad")),
        ("ConstantOfShape: sizes stay", "op.size(0, element, axis)", "pass", grown("ConstantOfShape")),
    ],
    "rules/normalization.py": [
        ("BatchNormalization: training without a statistic", '"n s" if training else ""', '""',
         grown("BatchNormalization")),
        ("BatchNormalization: the variance is not tied", '"n c *s, c, c, c, c -> n', '"n c *s, c, c, c, v -> n',
         grown("BatchNormalization")),
        ("BatchNormalization: missing scales", "op.scales(1, 4)", "pass", widened("plain_scales")),
        ("InstanceNormalization: missing uniform", 'n c *x", uniform="x"', 'n c *x"', grown("InstanceNormalization")),
        ("GroupNormalization: missing uniform", GROUP_NORM, GROUP_NORM.replace('"c x"', '"x"'),
         grown("GroupNormalization")),
        ("GroupNormalization: groups innermost", GROUP_NORM, GROUP_NORM.replace("(g c)", "(c g)"),
         grown("GroupNormalization")),
        ("GroupNormalization: scale per group", GROUP_NORM, GROUP_NORM.replace("(g c), (g c)", "g, g"),
         grown("GroupNormalization")),
        ("LayerNormalization: missing uniform", LAYER_UNIFORM, "pass", grown("LayerNormalization")),
        ("LayerNormalization: wrong law", LAYER_UNIFORM, LAYER_UNIFORM.replace("layer", "rms"),
         widened("hold_the_mean")),
        ("LayerNormalization: missing gamma correction", LAYER_UNIFORM, LAYER_UNIFORM.replace(", scale=1", ""),
         widened("hold_the_mean")),
        ("LayerNormalization: scale and shift swapped", LAYER_UNIFORM, LAYER_UNIFORM.replace("=1", "=0").replace(
            "=2", "=1").replace("=0", "=2"), widened("hold_the_mean")),
        ("LayerNormalization: missing shift", LAYER_UNIFORM, LAYER_UNIFORM.replace(", shift=2", ""),
         widened("hold_the_mean")),
        ("LayerNormalization: one axis too few", "at = op.axis(len(axes), -1)\n    op.unify_all", "at = len(axes) - 1"
         "\n    op.unify_all", grown("LayerNormalization")),
        ("LayerNormalization: the shift is not tied", "op.broadcast([op.input(1), op.input(2)], axes)",
         "op.broadcast([op.input(1)], axes)", grown("LayerNormalization")),
        ("MeanVarianceNormalization: wrong default axes", "[0, 2, 3])", "[1, 2, 3])",
         grown("MeanVarianceNormalization")),
        ("LRN: channels free", 'op.apply("n c *x -> n c *x", fixed="c")', 'op.apply("n c *x -> n c *x")', grown("LRN")),
        ("LpNormalization: missing freeze", 'op.freeze(axes[op.axis(len(axes), -1)], "divides', 'str("divides',
         grown("LpNormalization")),
        ("Softmax: missing pin", "op.normalise(axes[at : at + 1 if op.version >= 13 else None])", "pass",
         grown("Softmax", "LogSoftmax")),
        ("Softmax: shares of the wrong axis", "op.shares(at)", "op.shares(0)", grown("Softmax")),
        ("Softmax: the copies share nothing", "op.shares(at)", "pass", grown("Softmax")),
        ("Softmax: shares of several axes before opset 13", "(op.version >= 13 or at == len(axes) - 1)", "True",
         grown("Softmax")),
        ("Softmax: one axis before opset 13", "at : at + 1 if op.version >= 13 else None", "at : at + 1",
         grown("Softmax")),
        ("Softmax: default axis of opset 13 before it", "-1 if op.version >= 13 else 1)", "-1)",
         mutants("softmax")),
    ],
    "rules/recurrent.py": [
        ("recurrent: gates innermost", "d (k h) i", "d (h k) i", mutants("recurrent")),
        ("recurrent: gates of the recurrence innermost", "d (k h) h", "d (h k) h",
         mutants("recurrent")),
        ("recurrent: gates of the bias innermost", "d (b h)", "d (h b)", mutants("recurrent")),
        ("recurrent: peepholes innermost", "d (p h)", "d (h p)", mutants("recurrent")),
        ("recurrent: hidden_size stays", ', "h": "hidden_size"', "", mutants("recurrent")),
        ("recurrent: missing contraction", "op.contract(hidden[2], [(2, 2)])", "pass",
         mutants("recurrent")),
        ("recurrent: contraction on the gates", "op.contract(hidden[2], [(2, 2)])", "op.contract(hidden[2], [(2, 1)])",
         mutants("recurrent")),
    ],
    "rules/reduction.py": [
        ("ReduceMean: a sum", '"ReduceMean": "mean"', '"ReduceMean": "sum"', grown("ReduceMean")),
        ("ReduceSum: a mean", '"ReduceSum": "sum"', '"ReduceSum": "mean"', grown("ReduceSum")),
        ("ReduceL2: a sum", '"ReduceL2": "square"', '"ReduceL2": "sum"', grown("ReduceL2")),
        ("ReduceSumSquare: a sum", '"ReduceSumSquare": "square"', '"ReduceSumSquare": "sum"',
         grown("ReduceSumSquare")),
        ("ReduceL1: a square", '"ReduceL1": "sum"', '"ReduceL1": "square"', grown("ReduceL1")),
        ("reductions: missing contraction", "op.contract(axis, [(0, position)], LAWS[op.kind])", "pass",
         grown("ReduceSum")),
        ("ReduceProd: a sum", 'op.freeze(axis, "reduces this axis in a way that copies change")',
         "op.contract(axis, [(0, position)])",
         grown("ReduceProd", "ReduceLogSumExp")),
        ("ReduceMax: more than copies", 'op.only_copies(axis, "takes an extreme over this axis")', "pass",
         mutants("extreme")),
        ("reductions: keepdims off by default", 'if op.attrs.get("keepdims", 1) else target)\n    for position',
         'if op.attrs.get("keepdims", 0) else target)\n    for position', grown("ReduceSum")),
        ("reductions: noop ignored", 'op.attrs.get("noop_with_empty_axes", 0)', "0", grown("ReduceSum")),
        ("ArgMax: a sum", 'op.choose(0, at, 0, reason="returns positions along this axis")',
         "op.contract(source[at], [(0, at)])",
         grown("ArgMax", "ArgMin")),
    ],
    "rules/indexing.py": [
        ("GatherElements: indices not tied to the result", "op.unify(b, c)", "pass", indexed("GatherElements")),
        ("GatherElements: a sum", "op.look_up(data[at], 1)", "op.contract(data[at], [(0, at)])",
         indexed("GatherElements")),
        ("GatherElements: other axes not tied", "position != at and (a.size != b.size or not op.unify(a, b))", "False",
         indexed("GatherElements")),
        ("GatherND: batch axes not tied", "op.unify_all(data[:batch], indices[:batch])", "pass", indexed("GatherND")),
        ("GatherND: a sum", "op.freeze(data[batch : batch + depth], LOOKED_UP)",
         "[op.contract(data[p], [(0, p)]) for p in range(batch, batch + depth)]", indexed("GatherND")),
        ("ScatterElements: axis free", "position == at or a.size", "a.size", mutants("scattering")),
        ("ScatterND: missing freeze",
         "            op.freeze(axis, WRITTEN)\n    for along",
         "            pass\n    for along",
         indexed("ScatterND")),
        ("ScatterND: the range is not moved", "op.list_run(1, column, along, pieces[0], pieces[1], ends[1])", "pass",
         indexed("ScatterND")),
        ("ScatterND: the piece before is written",
         "op.unify(pieces[1], updates[along])",
         "op.unify(pieces[0], updates[along])",
         indexed("ScatterND")),
        ("TensorScatter: missing freeze", "op.freeze((cache[at], update[at]), WRITTEN)", "pass",
         indexed("TensorScatter")),
        ("TensorScatter: wrong default axis", "op.axis(len(cache), -2)", "op.axis(len(cache), -1)",
         indexed("TensorScatter")),
        ("OneHot: missing freeze", 'op.freeze(target[at], "counts along this axis")', "pass",
         indexed("OneHot")),
        ("OneHot: wrong default axis", "at = op.axis(len(target), -1)", "at = op.axis(len(target), 0)",
         indexed("OneHot")),
        ("TopK: a sum", "op.choose(0, at, 1)",
         "op.contract(source[at], [(0, at)])", indexed("TopK")),
        ("CumSum: missing freeze", "op.freeze(source[int(axis.reshape(-1)[0]) % len(source)],", "str(",
         indexed("CumSum", "CumProd")),
        ("ReverseSequence: lengths not tied",
         'op.unify(source[op.axis(len(source), 1, "batch_axis")], lengths[0])', "pass", indexed("ReverseSequence")),
        ("ReverseSequence: axes swapped", 'op.axis(len(source), 0, "time_axis")',
         'op.axis(len(source), 1, "time_axis")', indexed("ReverseSequence")),
        ("Trilu: matrix free", 'op.apply("*b m n -> *b m n", fixed="m n")', 'op.apply("*b m n -> *b m n")',
         indexed("Trilu")),
        ("CenterCropPad: size of the wrong entry", "op.size(1, listed.index(position), b)", "op.size(1, 0, b)",
         indexed("CenterCropPad")),
        ("Det: rows may be permuted", '"*b m n -> *b", fixed="m n"', '"*b m n -> *b", fixed="b n m"', indexed("Det")),
        ("DFT: the parts of complex numbers free", "if position in (at, len(source) - 1):", "if position == at:",
         indexed("DFT")),
        ("DFT: wrong default axis", "1 if op.version < 20 else -2", "1", indexed("DFT")),
        ("STFT: batch not tied", "op.unify(signal[0], target[0])", "pass", indexed("STFT")),
        ("GridSample: batch of the grid not tied", '"n c *x, n *y r -> n c *y"', '"n c *x, m *y r -> n c *y"',
         indexed("GridSample")),
        ("GridSample: positions free", '"n c *x, n *y r -> n c *y", fixed="x y r"',
         '"n c *x, n *y r -> n c *y", fixed="x"', indexed("GridSample")),
        ("RoiAlign: regions not tied to the result", 'signature("RoiAlign", "b c *x, r q, r -> r c *y", fixed="b x r q',
         'signature("RoiAlign", "b c *x, r q, r -> s c *y", fixed="b x q', indexed("RoiAlign")),
        ("DeformConv: offset groups ignored", "axes is not None and parts > 1", "axes is not None and parts > 99",
         indexed("DeformConv")),
        ("DeformConv: groups innermost of the bias", "(g o), n m *y -> n (g o) *y", "(o g), n m *y -> n (g o) *y",
         mutants("groups")),
        ("Col2Im: block outermost", '"n (c k) l, i, b -> n c *y"', '"n (k c) l, i, b -> n c *y"', indexed("Col2Im")),
        ("losses: classes free", '"n c *x, n *x, c -> n *x, n c *x", fixed="c"', '"n c *x, n *x, c -> n *x, n c *x"',
         indexed("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")),
        ("CausalConvWithState: state not tied", "n c s -> n c t, n c s", "n z s -> n c t, n z s",
         indexed("CausalConvWithState")),
    ],
    "rules/attention.py": [
        ("attention: missing contraction", "self.op.contract(self.width, [(0, len(query) - 1)])", "pass",
         attention("outputs[23")),
        ("attention: the default scale follows the width",
         'self.op.default("scale", self.width.size**-0.5, self.width)', "pass", attention("Attention")),
        ("attention: repeated heads outermost", "Product((self.group, Dim(heads // groups)))",
         "Product((Dim(heads // groups), self.group))", attention("Attention")),
        ("attention: heads innermost", "return batch, positions, Product((heads, width))",
         "return batch, positions, Product((width, heads))", attention("Attention")),
        ("Attention: q_num_heads stays", 'op.attribute("q_num_heads", said.heads)', "pass", attention("Attention")),
        ("Attention: kv_num_heads stays", 'op.attribute("kv_num_heads", said.group)\n    said.scores()\n\n\n@rule("Mul',
         'said.scores()\n\n\n@rule("Mul', attention("Attention")),
        ("Attention: causal rows free",
         'if op.attrs.get("is_causal", 0) or max(windows) >= 0:',
         "if max(windows) >= 0:",
         attention("Attention")),
        ("attention: positions of keys free", "op.freeze(self.columns, KERNEL)", "pass", attention("Attention")),
        ("attention: mask not tied", "self.op.broadcast([mask[:-1]], (self.batch, self.heads, self.rows))", "pass",
         attention("Attention")),
        ("attention: cache of values as wide as keys", "(caches(first + 1), self.value)",
         "(caches(first + 1), self.width)", attention("Attention")),
        ("attention: cache has the heads of queries", "(self.batch, self.group, width))", "(self.batch, self.heads, "
         "width))", attention("Attention")),
        ("attention: result as wide as keys", "_laid_out(result, self.batch, self.heads, self.rows, self.value)",
         "_laid_out(result, self.batch, self.heads, self.rows, self.width)", attention("Attention")),
        ("attention: values before keys end to end",
         "Concat((Product((heads, width)), Product((group, width)), Product((group, value))))",
         "Concat((Product((heads, width)), Product((group, value)), Product((group, width))))",
         attention("Attention")),
        ("MultiHeadAttention: num_heads stays",
         'op.attribute("num_heads", said.heads)\n    said.scores()\n\n\n@rule("G',
         'said.scores()\n\n\n@rule("G', attention("MultiHeadAttention")),
        ("MultiHeadAttention: a packed bias may widen keys",
         "said.packed(op.input(3))\n        op.freeze(said.width, PACKED)", "said.packed(op.input(3))",
         attention("MultiHeadAttention")),
        ("GroupQueryAttention: width free",
         'op.freeze(said.width, "takes multiples of 8 along this axis, and one size for keys and values")', "pass",
         attention("GroupQueryAttention")),
        ("com.microsoft.Attention: missing contraction", "op.contract(source[-1], [(0, 2), (1, 0)])", "pass",
         attention("Attention")),
        ("com.microsoft.Attention: sizes of queries, keys and values stay",
         'op.attribute("qkv_hidden_sizes", Product((said.heads, wide)), element=element)', "pass",
         attention("Attention")),
        ("RotaryEmbedding: layouts swapped", "(pairs, two) if interleaved else (two, pairs)",
         "(two, pairs) if interleaved else (pairs, two)", attention("RotaryEmbedding")),
        ("RotaryEmbedding: rotated width stays", 'op.attribute("rotary_embedding_dim", cos[-1], cos[-1])', "pass",
         attention("RotaryEmbedding")),
        ("RotaryEmbedding: tables not tied", "op.unify(cache[-1], pairs)", "pass", attention("RotaryEmbedding")),
        ("RotaryEmbedding: missing scales", "op.scales(first, first + 1)", "pass", mutants("rotary")),
    ],
    "rules/contrib.py": [
        ("BiasGelu: bias not tied", '"BiasGelu", "FastGelu", "*x c, c -> *x c"', '"BiasGelu", "FastGelu", "*x c, b -> '
         '*x c"', contrib("BiasGelu")),
        ("BiasSplitGelu: halves innermost", '"n s (k c), (k c) -> n s c"', '"n s (c k), (c k) -> n s c"',
         contrib("without_a_kernel")),
        ("FusedMatMul: missing contraction", "op.contract(a[left[-1]], [(0, left[-1]), (1, inner)])", "pass",
         contrib("FusedMatMul")),
        ("FusedMatMul: weights on the wrong axis", "[(0, left[-1]), (1, inner)]", "[(0, left[-1]), (1, right[-1])]",
         contrib("FusedMatMul")),
        ("FusedMatMul: transBatch ignored", "order = [*order[1:-1], order[0], order[-1]]", "pass",
         contrib("FusedMatMul")),
        ("CDist: a sum", 'op.contract(axes[1], [(index, 1)], "square")', "op.contract(axes[1], [(index, 1)])",
         contrib("CDist")),
        ("CDist: one side is not weighed", "for index, axes in enumerate(sides):", "for index, axes in "
         "enumerate(sides[:1]):", contrib("CDist")),
        ("FusedConv: groups innermost of the sum", "(g o), n (g o) *y -> n (g o) *y", "(g o), n (o g) *y -> n (g o) *y",
         mutants("groups")),
        ("fused activations: all keep zero",
         'next((what for what in ("relu", "any") if kind in UNARY[what]), "zero")',
         '"zero"',
         mutants("a_fused_activation")),
        ("fused activations: unsaid", "    activated(op)\n\n\ntype_function(\"FusedGemm\"", "\n\ntype_function("
         '"FusedGemm"', contrib("fused_activation")),
        ("RMSNormalization: missing uniform", RMS_UNIFORM, "pass", contrib("RMSNormalization")),
        ("RMSNormalization: wrong law", RMS_UNIFORM, RMS_UNIFORM.replace("rms", "layer"), mutants("rms")),
        ("RMSNormalization: missing gamma correction", RMS_UNIFORM, RMS_UNIFORM.replace(", scale=1", ""),
         mutants("rms")),
        ("RMSNormalization: scale not tied", "op.broadcast([op.input(1)], axes)", "pass", contrib("RMSNormalization",
         "SimplifiedLayerNormalization")),
        ("SkipLayerNormalization: missing uniform",
         "op.uniform(source[-1:], law, inputs=(0, 1, bias), scale=2, shift=shift, total=3, epsilon=1e-12)", "pass",
         contrib("SkipLayerNormalization")),
        ("SkipLayerNormalization: gamma of the wrong operand", "scale=2, shift=shift, total=3, epsilon=1e-12",
         "scale=1, shift=shift, total=3, epsilon=1e-12", contrib("grows_to_any_width")),
        ("SkipLayerNormalization: another default epsilon", "scale=2, shift=shift, total=3, epsilon=1e-12",
         "scale=2, shift=shift, total=3, epsilon=1e-2", contrib("grows_to_any_width")),
        ("SkipLayerNormalization: the sum counts as normal", "shift=shift, total=3, epsilon", "shift=shift, epsilon",
         contrib("grows_to_any_width")),
        ("SkipLayerNormalization: only the first operand is summed", "inputs=(0, 1, bias), scale=2", "scale=2",
         contrib("not_linear")),
        ("SkipLayerNormalization: laws swapped", '("layer", 4, 3) if op.kind ==', '("layer", 4, 3) if op.kind !=',
         contrib("grows_to_any_width")),
        ("EmbedLayerNormalization: positions not tied", "v c, p c, g c, c, c, b s", "v c, p z, g c, c, c, b s",
         contrib("EmbedLayerNormalization")),
        ("EmbedLayerNormalization: missing uniform",
         'op.uniform(result[-1:], "layer", inputs=(2, 3, 4), scale=5, shift=6, total=2, epsilon=1e-12)', "pass",
         contrib("EmbedLayerNormalization")),
        ("GroupNorm: groups innermost", '"n *x (g c)" if op.attrs.get("channels_last", 1) else "n (g c) *x"',
         '"n *x (c g)" if op.attrs.get("channels_last", 1) else "n (c g) *x"', contrib("without_a_kernel")),
        ("GroupNorm: layouts swapped", '"n *x (g c)" if op.attrs.get("channels_last", 1) else "n (g c) *x"',
         '"n (g c) *x" if op.attrs.get("channels_last", 1) else "n *x (g c)"', contrib("without_a_kernel")),
    ],
    "rules/quantized.py": [
        ("scales: those of units are not tied", "op.unify(axes[0], data[axis])", "pass",
         quantized("DequantizeLinear", "QuantizeLinear")),
        ("scales: blocks outermost", 'blocks = (a, Dim(block, op.why("quantizes blocks of this size")))',
         'blocks = (Dim(block, op.why("quantizes blocks of this size")), a)', quantized("DequantizeLinear")),
        ("scales: blocks may grow", 'Dim(block, op.why("quantizes blocks of this size"))', "Dim(block)",
         quantized("DequantizeLinear")),
        ("QuantizeLinear: wrong default axis", "at = op.axis(len(axes), 1)\n    for",
         "at = op.axis(len(axes), -1)\n    for", quantized("QuantizeLinear")),
        ("QuantizeLinear: zero points not tied", "for index in (1, 2):", "for index in (1,):",
         quantized("DequantizeLinear", "QuantizeLinear")),
        ("DequantizeLinear: integers are not shared", "op.integers(0, 2, at)", "pass",
         quantized_graphs("widened_graph")),
        ("DequantizeLinear: counted from the scale", "op.integers(0, 2, at)", "op.integers(0, 1, at)",
         quantized_graphs("dequantized_weight")),
        ("DequantizeLinear: zero points along the wrong axis", "op.integers(0, 2, at)", "op.integers(0, 2, 0)",
         quantized_graphs("dequantized_weight")),
        ("DynamicQuantizeLinear: more than copies", f"for axis in op.input(0) or ():\n        {EXTREMES}", "pass",
         quantized_graphs("do_not_admit")),
        ("QLinearConv: groups innermost of the weight", QUANTIZED_CONV, QUANTIZED_CONV.replace("(g o) i", "(o g) i"),
         quantized("QLinearConv")),
        ("QLinearConv: the bias is not tied", QUANTIZED_CONV, QUANTIZED_CONV.replace("(g o) ->", "*g ->"),
         quantized("QLinearConv")),
        ("QLinearConv: kernel and positions free", f"{QUANTIZED_CONV})", f'{QUANTIZED_CONV.split(", fixed")[0]})',
         quantized("QLinearConv")),
        ("QLinearConv: layouts swapped", 'if op.attrs.get("channels_last", 0) else ("n (g i) *x", "n (g o) *y")',
         'if not op.attrs.get("channels_last", 0) else ("n (g i) *x", "n (g o) *y")', quantized("QLinearConv")),
        ("QLinearConv: channels never last", 'if op.attrs.get("channels_last", 0) else ("n (g i) *x", "n (g o) *y")',
         'if False else ("n (g i) *x", "n (g o) *y")', quantized("QLinearConv")),
        ("QLinearConv: zero points of the weight not tied",
         "for index in (4, 5):\n        _per_unit(op, index, op.input(3), 0)",
         "for index in (4,):\n        _per_unit(op, index, op.input(3), 0)", quantized("QLinearConv")),
        ("QLinearConv: integers are not shared", "op.integers(3, 5, 0)", "pass", quantized("QLinearConv")),
        ("QLinearConv: counted from the zero point of the input", "op.integers(3, 5, 0)", "op.integers(3, 2, 0)",
         quantized("QLinearConv")),
        ("ConvInteger: groups innermost of the weight", CONV_INTEGER, CONV_INTEGER.replace("(g o) i", "(o g) i"),
         quantized("ConvInteger")),
        ("ConvInteger: kernel and positions free", CONV_INTEGER, CONV_INTEGER.split(", fixed")[0],
         quantized("ConvInteger")),
        ("ConvInteger: counted from the zero point of the input", "op.integers(1, 3, 0)", "op.integers(1, 2, 0)",
         quantized("ConvInteger")),
        ("ConvInteger: zero points of the weight not tied", "_per_unit(op, 3, op.input(1), 0)", "pass",
         quantized_graphs("without_a_kernel")),
        ("products of integers: the inputs of MatMul", "((left, right)[index], position)", "(index, position)",
         quantized("QLinearMatMul")),
        ("products of integers: parameters of A along columns",
         "_per_unit(op, index, a, max(len(a) - 2, 0))", "_per_unit(op, index, a, len(a) - 1)",
         quantized_graphs("without_a_kernel")),
        ("products of integers: parameters of B not tied", f"for index in columns:\n        {COLUMNS}", "pass",
         quantized("MatMulInteger", "QLinearMatMul")),
        ("products of integers: A is not shared", "op.integers(left, zeros[0], max(len(a) - 2, 0))", "pass",
         quantized("MatMulInteger")),
        ("products of integers: A is counted by columns", "op.integers(left, zeros[0], max(len(a) - 2, 0))",
         "op.integers(left, zeros[0], len(a) - 1)", quantized_graphs("without_a_kernel")),
        ("products of integers: B is not shared", "op.integers(right, zeros[1], len(b) - 1)", "pass",
         quantized("MatMulInteger")),
        ("products of integers: B is counted from the zero point of A", "op.integers(right, zeros[1], len(b) - 1)",
         "op.integers(right, zeros[0], len(b) - 1)", quantized("MatMulInteger")),
        ("products of integers: B is counted by rows", "op.integers(right, zeros[1], len(b) - 1)",
         "op.integers(right, zeros[1], 0)", quantized("MatMulInteger")),
        ("QLinearMatMul: parameters of the result not tied",
         "_per_unit(op, index, op.output(), max(len(op.output() or ()) - 2, 0))", "pass",
         quantized_graphs("without_a_kernel")),
        ("MatMulIntegerToFloat: the bias is not tied", "columns=(3, 5, 6)", "columns=(3, 5)",
         quantized("MatMulIntegerToFloat")),
        ("MatMulIntegerToFloat: counted from the scale", "zeros=(4, 5)", "zeros=(2, 3)",
         quantized("MatMulIntegerToFloat")),
        ("DynamicQuantizeMatMul: missing contraction", "op.contract(b[rows], [(1, rows)])", "pass",
         quantized("DynamicQuantizeMatMul")),
        ("DynamicQuantizeMatMul: A weighs too", "op.said.contractions = ()\n    rows", "rows",
         quantized("DynamicQuantizeMatMul")),
        ("DynamicQuantizeMatMul: the bias is not tied", "for index in (2, 3, 4):", "for index in (2, 3):",
         quantized("DynamicQuantizeMatMul")),
        ("DynamicQuantizeMatMul: more than copies", f"for axis in a:\n        {EXTREMES}", "pass",
         quantized_graphs("other_units")),
        ("QGemm: transA ignored", '"k m" if op.attrs.get("transA", 0) else "m k"', '"m k"', quantized("QGemm")),
        ("QGemm: transB ignored", '("n k", 0) if op.attrs.get("transB", 0) else ("k n", 1)', '("k n", 1)',
         quantized("QGemm")),
        ("QGemm: columns of a transposed B", '("n k", 0) if', '("n k", 1) if', quantized("QGemm")),
        ("QGemm: bias on the wrong axes", "m~ n~, *e", "n~ m~, *e", quantized("QGemm")),
        ("QGemm: parameters of B not tied", "_per_unit(op, index, op.input(3), columns)", "pass", quantized("QGemm")),
        ("QGemm: counted by rows", "op.integers(3, 5, columns)", "op.integers(3, 5, 1 - columns)", quantized("QGemm")),
        ("MatMulNBits: missing contraction", "op.contract(packed[1], [(0, len(a) - 1), (2, len(scales) - 1)])", "pass",
         quantized("MatMulNBits")),
        ("MatMulNBits: the rows of the scales weigh", "(2, len(scales) - 1)])", "(2, 0)])", quantized("MatMulNBits")),
        ("MatMulNBits: packed integers weigh", "(2, len(scales) - 1)])", "(1, 1)])", quantized("MatMulNBits")),
        ("MatMulNBits: K stays", 'op.attribute("K", a[-1])', "pass", quantized("MatMulNBits")),
        ("MatMulNBits: N stays", 'op.attribute("N", packed[0])', "pass", quantized("MatMulNBits")),
        ("MatMulNBits: rows innermost of the scales", "'(n k)' if len(scales)", "'(k n)' if len(scales)",
         quantized("MatMulNBits")),
        ("MatMulNBits: blocks with zero points free", "if op.has(3) or op.has(4)", "if op.has(4)",
         quantized("MatMulNBits")),
        ("MatMulNBits: a last block that is not full", " or a[-1].size != size * packed[1].size", "",
         quantized("MatMulNBits")),
        ("MatMulNBits: what is in a block is free", 'fixed="c p z"', 'fixed="p z"', quantized("MatMulNBits")),
        ("QLinearWhere: inputs of QLinearAdd", "(0, 1, 4) if op.kind", "(0, 3) if op.kind", quantized("QLinearWhere")),
        ("QLinearAdd: only the first operand",
         '"QLinearWhere" else (0, 3)',
         '"QLinearWhere" else (0,)',
         quantized("QLinearAdd")),
        ("QLinearSoftmax: missing pin", "op.normalise(axes[at : at + 1 if single else None])", "pass",
         quantized("QLinearSoftmax")),
        ("QLinearSoftmax: one axis before opset 13", "at + 1 if single else None", "at + 1",
         quantized("QLinearSoftmax")),
        ("QLinearConcat: parts in the wrong order", "Concat(axes[at] for axes in parts)",
         "Concat(axes[at] for axes in parts[::-1])", quantized("QLinearConcat")),
        ("QLinearConcat: wrong axis", "at = op.axis(len(target), 1)", "at = 0", quantized("QLinearConcat")),
        ("QLinearGlobalAveragePool: layouts swapped", 'if op.attrs.get("channels_last", 0) else "n c *x -> n c *y"',
         'if not op.attrs.get("channels_last", 0) else "n c *x -> n c *y"', quantized("QLinearGlobalAveragePool")),
        ("QLinearAveragePool: positions free", '"n c *x -> n c *y", fixed="x y")', '"n c *x -> n c *y")',
         quantized("QLinearAveragePool", "QLinearGlobalAveragePool")),
        ("QLinearReduceMean: keepdims ignored", '(shape) if keep or p not in reduced', '(shape) if p not in reduced',
         quantized_graphs("without_a_kernel")),
        ("types: QGemm transposes nothing", 'b[1][0 if attrs.get("transB", 0) else 1]', "b[1][1]", quantized("QGemm")),
        ("types: QLinearConcat is as long as its first part",
         "sum(_given(types, index)[1][at] for index in range(2, len(types), 3))", "shape[at]",
         quantized("QLinearConcat")),
    ],
    "rules/classical.py": [
        ("prepared features free", 'op.freeze_all("prepares features one by one")', 'op.apply("*x -> *x")',
         ("classical", "features")),
        ("Scaler: typed as its input", "(TensorProto.FLOAT, known[1])", "known", ("classical", "features")),
    ],
    "graph/sequences.py": [
        ("sequences: a part of a list too far", "parts[place.item()]]", "parts[place.item() - 1]]", sequences("parts")),
        ("sequences: the last put in is the first", "*reversed(added)", "*added",
         sequences("parts")),
        ("sequences: an element that is put in between", " or len(maker.input) != 2", "", sequences("stays")),
        ("sequences: stacked along a new axis", 'is_cat = parts and not integer(node, "new_axis")',
         "is_cat = parts", sequences("stays")),
        ("sequences: joined along the first axis", "node.name, axis=axis)] if is_cat", "node.name, axis=0)] if is_cat",
         sequences("parts")),
        ("sequences: a default that can be fed is a constant", "if tensor.name not in fed}", "}", sequences("stays")),
        ("sequences: parts of a split along the first axis", "(start, start + length, axis)]",
         "(start, start + length, 0)]", sequences("parts")),
        ("sequences: parts start one too late", "(place * lengths, lengths) if", "((place + 1) * lengths, lengths) if",
         sequences("parts")),
        ("sequences: every part of a list starts at 0", "(lengths[:place].sum(), lengths[place])",
         "(0, lengths[place])", sequences("parts")),
        ("sequences: single units keep their axis", 'len(split.input) == 1 and not integer(split, "keepdims", 1)',
         "False", sequences("parts")),
        ("sequences: keepdims counts beside lengths", 'len(split.input) == 1 and not integer(split, "keepdims", 1)',
         'not integer(split, "keepdims", 1)', sequences("no_lengths")),
        ("sequences: counted from the end without a length", "lengths is None or (place < 0 and lengths.ndim == 0)",
         "lengths is None", sequences("stays")),
        ("sequences: those that an output has are dropped", ".union(value_names(self._graph.output), *(",
         ".union(*(", sequences("stays")),
    ],
    "analysis/shuffles.py": [
        ("shuffles: one that an output sees", "between.name in kept or ", "", widened("shuffle")),
    ],
    "analysis/inference.py": [
        ("inputs: missing pin", "dims.pin(axis, f\"is the model's input {tensor.name!r}\")", "pass",
         inferred("inputs_outputs")),
        ("outputs: missing pin", "dims.pin(axis, f\"is the model's output {tensor.name!r}\")", "pass",
         inferred("inputs_outputs")),
        ("outputs: inputs can never grow", "dims.pin(axis, f\"is the model's input {tensor.name!r}\")",
         "dims.freeze(axis, f\"is the model's input {tensor.name!r}\")", interface("input_channels")),
        ("outputs: what no weight reads is cut", "if made and free and free <= read:", "if made and free:",
         widened("no_weight_reads")),
        ("outputs: constants are cut", "made = bool(tensor.inputs) and not is_weight", "made = True",
         widened("constant_that_is_an_output")),
        ("outputs: hidden ones are pinned", "if made and free and free <= read:", "if False:",
         widened("also_an_output")),
        ("softmax: positions free", "(dims.pin if dim in made else dims.freeze)(dim, shared[id(dim)])", "pass",
         widened("attention_normalises")),
        ("softmax: positions that a constant has are units",
         "any((number, index) in analysis.uses for index, _ in contraction.sides)",
         "any(analysis.is_derived(number, index) for index, _ in contraction.sides)", widened("attention_normalises")),
        ("tables: the entries are unspoken", "for contraction in op.said.contractions), *op.said.tables,",
         "for contraction in op.said.contractions),", interface("vocabulary")),
        ("integers: all are shared", "sums integers, which cannot be divided among copies\")",
         "sums integers, which cannot be divided among copies\") if 0 else None", quantized("MatMulInteger")),
        ("integers: a zero point that is fed", "for i in (index, zero_point) if i < len",
         "for i in (index,) if i < len", quantized("MatMulInteger")),
        ("integers: weights that are fed", "for i in (index, zero_point) if i < len",
         "for i in (zero_point,) if i < len", quantized("ConvInteger", "MatMulInteger")),
        ("integers: those of one byte are sizes", " and value.dtype.itemsize > 1", "",
         quantized("DequantizeLinear", "QLinearMatMul")),
        ("integers: biases are sizes", "value.ndim <= 1 and node.op not in traits.WHOLE_BIASES", "value.ndim <= 1",
         quantized("QLinearConv", "QGemm")),
    ],
    "algebra/dims.py": [
        ("factor: of a product there is none", "    inner = Dim(size)\n    if isinstance(axis, Dim):",
         "    inner = Dim(size)\n    if isinstance(axis, Product):\n        return None\n    if isinstance(axis, Dim):",
         algebra("so_many_units")),
        ("dims: pins are lost", "pin(axis, dim.pinned)", "pass", algebra("carried_over")),
        ("dims: what is fixed is lost", "freeze(axis, dim.fixed)", "pass", algebra("frozen_spreads")),
        ("dims: copies are lost", "only_copies(axis, dim.copies)", "pass", algebra("carried_over")),
        ("dims: pins are for ever", "pin(axis, dim.pinned)",
         "freeze(axis, dim.pinned)", algebra("carried_over")),
        ("dims: pinned ones grow of themselves", "return self.fixed or self.pinned", "return self.fixed",
         interface("leaves_the_interface")),
        ("dims: a pin holds no ratio", "dim.pinned = reason\n            _hold(dim)",
         "dim.pinned = reason", algebra("remembers")),
        ("dims: a freeze holds no ratio", "dim.fixed = reason\n            _hold(dim)",
         "dim.fixed = reason", algebra("remembers")),
        ("dims: a ratio of what is frozen", "axis.statistic = axis.statistic or reason\n        _hold(axis)",
         "axis.statistic = axis.statistic or reason", algebra("remembers")),
        ("dims: joined ratios forget that they are frozen", "its.frozen = its.frozen or mine.frozen", "pass",
         algebra("remembers")),
    ],
    "rewrite/norms.py": [
        ("normalisers: missing epsilon correction", "statistic.epsilon)) * share", "statistic.epsilon))",
         contrib("grows_to_any_width")),
        ("normalisers: missing gamma correction", 'share**0.5, "copy"', '1.0, "copy"', widened("hold_the_mean")),
        ("normalisers: padding keeps the shift",
         'fillers[number, statistic.shift] = "zero"',
         'fillers[number, statistic.shift] = "copy"',
         widened("hold_the_mean")),
        ("normalisers: the share of padding",
         "float((growth[dim].kind == 0).mean())",
         "float((growth[dim].kind != 0).mean())",
         widened("hold_the_mean")),
        ("filled: nodes stay", "if odd:", "if False:", normalised("any_width")),
        ("filled: copies of other units",
         "np.where(units < size, units, units % dim.size), size",
         "np.where(units < size, units, 0), size",
         normalised("any_width")),
        ("filled: only the first input", "for index, tensor in enumerate(node.inputs):",
         "for index, tensor in list(enumerate(node.inputs))[:1]:", normalised("any_width")),
        ("filled: cut as if nothing were filled in",
         "return np.arange(size), times[dim] * dim.size if dim in times else size",
         "return np.arange(size), size",
         normalised("groups_of_an_operator")),
        ("filled: padding too", "return {}  # padding", "pass  # padding", normalised("padding")),
        ("filled: bounds are inputs at any opset", "if opset < 10:", "if False:", normalised("opset_9")),
    ],
    "rewrite/rewrite.py": [
        ("laws: a mean is a sum", 'if contraction.law == "mean":', 'if contraction.law == "none":',
         grown("ReduceMean")),
        ("laws: a square is a sum", "weight=np.sqrt(map.weight)", "weight=map.weight", grown("ReduceL2")),
        ("attributes stay", "attrs[size.name] = new\n", "pass\n", grown("Conv")),
        ("default attributes are not written", "attrs[name] = value\n", "pass\n", attention("outputs[23")),
        ("sizes that are data follow the width", "index not in needs and not passes_on", "False",
         widened("used_as_data")),
        ("selections stay", "for selection in said.selections:", "for selection in said.selections[:0]:",
         grown("Gather")),
        ("shares: wrong sign", "plus=-np.log(copies))", "plus=np.log(copies))",
         widened("gives_copies_shares")),
        ("shares: copies are not less likely",
         "rewriting.insert(number, 0, position, plus=-np.log(copies))",
         "pass",
         widened("gives_copies_shares")),
        ("shares: copies are not counted again", "rewriting.append(number, position, times=copies)",
         "pass", widened("gives_copies_shares")),
        ("shares: as if all had equally many copies", "np.bincount(map.index[old])[map.index]",
         "np.full(map.new, map.new / map.old)", widened("gives_copies_shares")),
        ("shares: wrong axis", "0, position, plus=-np.log(copies))", "0, 0, plus=-np.log(copies))", grown("Softmax")),
        ("shares: new classes are copies", "old = map.kind == 0", "old = map.kind >= 0",
         interface("softmax")),
        ("priors: none without a bias", "rewriting.append(number, position, plus=np.where(new, logit, 0.0))",
         "pass",
         interface("without_a_bias")),
        ("priors: beside a bias", '_classes(rewriting, "prior").difference(biased)', '_classes(rewriting, "prior")',
         interface("start_at_the_prior")),
        ("priors: old classes have it too", "np.where(new, logit, 0.0)", "np.full(len(new), logit)",
         interface("without_a_bias")),
        ("priors: scales are biases", "].op in traits.SUMS or", '].op in traits.SUMS | {"Mul"} or',
         interface("start_at_the_prior")),
        ("priors: weights are biases", "or (contractions and not weighs)", "or contractions",
         interface("start_at_the_prior")),
        ("priors: biases of layers are none", "or (contractions and not weighs)", "or False",
         interface("holds_the_prior")),
        ("new classes: nothing is taken off", "silence_classes(rewriting)\n    resize", "resize",
         interface("probability_zero")),
        ("new classes: taken off old ones too", "np.where(new, NEVER, 0.0)", "np.where(new, NEVER, NEVER / 2)",
         interface("probability_zero")),
        ("new classes: taken off along the wrong axis", "0, position, plus=np.where(new, NEVER, 0.0)",
         "0, 0, plus=np.where(new, NEVER, 0.0)", interface("probability_zero")),
        ("outputs: all units are given out", "if not grown or output.name not in rewriting.analysis.cut:", "if True:",
         widened("also_an_output")),
        ("outputs: the units in front are given out", FIRST_COPIES, "np.arange(maps[position].old)",
         widened("several_hidden_axes")),
        ("outputs: the last copies are given out", FIRST_COPIES,
         "np.arange(maps[position].new - maps[position].old, maps[position].new)",
         widened("also_an_output")),
        ("outputs: cut along one axis", "for position in grown:", "for position in grown[-1:]:",
         widened("several_hidden_axes")),
        ("outputs: readers see the cut", "for node in (*old.inputs, *old.outputs):",
         "for node in old.inputs:", widened("also_an_output")),
        ("outputs: cut along the first axis", "(source, units, result=cut, axis=position)",
         "(source, units, result=cut, axis=0)", widened("also_an_output")),
        ("integers: blocks outermost", "np.repeat(values, size // values.shape[position], axis=position)",
         "np.concatenate([values] * (size // values.shape[position]), axis=position)",
         quantized_graphs("dequantized_weight")),
        ("integers: all readers count from one zero point", "growth.factor, id(zero), id(gain))",
         "growth.factor, id(gain))", quantized_graphs("different_zero_points")),
        ("padding: its own scale is copied",
         'demands.fillers.update((scale, "size") for made in padding.scales.values() for scale in made.values())',
         "pass", widened("scale_of_each_unit")),
        ("padding: means that are read are weighed at random", "return bool(others) and all(",
         "return bool(others) or all(", widened("untied")),
    ],
    "algebra/maps.py": [
        ("products: innermost first",
         "np.add.outer(self.index * inner.old, inner.index)",
         "np.add.outer(self.index, inner.index * self.old)",
         grown("Reshape")),
        ("weights: copies get the whole weight", "1.0 / counts[index]", "1.0 + 0 * index", grown("MatMul")),
        ("integers: parts are rounded alike", "(view[order] + rank.reshape(column)) //", "view[order] //",
         quantized_graphs("shares_are_whole")),
        ("integers: what is moved is not taken away", "np.subtract.at(view, firsts, moved)", "pass",
         quantized_graphs("shares_are_whole")),
        ("integers: parts of any size", "moved = np.clip(moved, -room, room)", "pass",
         quantized_graphs("shares_are_whole")),
        ("integers: each copy has all of the room", "room[firsts] // (count[copies] - 1).reshape(column)",
         "room[firsts]", quantized_graphs("shares_are_whole")),
        ("integers: room on one side", "np.minimum(view - least, most - view)", "view - least",
         quantized_graphs("shares_are_whole")),
        ("integers: zero points stay behind", "zero = np.take(zero, axis.map.index, axis=position)", "pass",
         quantized_graphs("shares_are_whole")),
        ("integers: units that nobody reads have parts", "view[...] = 0\n", "pass\n",
         quantized_graphs("shares_are_whole")),
        ("integers: limits without the zero point", "for x in (values, zero)])", "for x in (values,)])",
         quantized_graphs("shares_are_whole")),
        ("scales: the mean of units that are not scaled", "if scale is None:", "if True:",
         widened("scale_of_each_unit")),
        ("scales: padding is multiplied by zero", "return size if size else np.ones_like(size)", "return size",
         widened("scale_of_each_unit")),
        ("priors: the probability of the others", "np.log(self.prior / (1 - self.prior))",
         "np.log((1 - self.prior) / self.prior)", interface("start_at_the_prior")),
        ("priors: never is a little", "NEVER = -1e4", "NEVER = -1e1", interface("probability_zero")),
    ],
    "algebra/growing.py": [
        ("scales: the padding's own is forgotten", "(len(factors) * float(_size(factors)))", "len(factors)",
         widened("scale_of_each_unit")),
        ("new classes: weights are copied", "np.concatenate([zero, prior, lifted])", "np.concatenate([zero, lifted])",
         interface("start_at_the_prior")),
        ("new classes: all vectors have the prior", 'if filler == "bias":', "if len(axis.shape) == 1:",
         interface("start_at_the_prior")),
    ],
    "rules/op.py": [
        ("permuted units: not permuted", "self.unify(Concat(single[k] for k in order), target)",
         "self.unify(Concat(single), target)", grown("Gather", "Slice")),
        ("signatures: missing contractions", "self.contract(axis, sides)", "pass", grown("Gemm")),
        ("signatures: letters are never fixed", "self.freeze(known.get(name), KERNEL)", "pass", grown("Conv")),
        ("signatures: attributes stay", "self.attribute(size, axis)", "pass", grown("Conv")),
        ("tables: missing pin", "dims.pin(axis, self.why(LOOKED_UP))", "pass", interface("vocabulary")),
        ("tables: fixed", "dims.pin(axis, self.why(LOOKED_UP))", "dims.freeze(axis, self.why(LOOKED_UP))",
         interface("vocabulary")),
        ("tables: unsaid", "self.said.tables += (axis,)", "pass", interface("vocabulary")),
        ("normalise: missing pin", 'dims.pin(axis, self.why("normalises over this axis"))', "pass",
         grown("LogSoftmax")),
        ("normalise: unsaid", "self.said.normalised += (axis,)", "pass", interface("softmax")),
        ("shares: not normalised", "self.said.normalised += (self.input(0) or ())[position : position + 1]", "pass",
         interface("softmax")),
        ("extremes: more than copies", "dims.only_copies(axis, self.why(reason))", "pass", mutants("extreme")),
        ("broadcasting: aligned at the left", "zip(reversed(axes or ()), reversed(result), strict=False)",
         "zip(axes or (), result, strict=False)", grown("Add")),
    ],
    "analysis/padding.py": [
        ("padding: laws swapped", '{"layer": "mean", "rms": "zero"}', '{"layer": "zero", "rms": "mean"}',
         widened("hold_the_mean")),
        ("padding: nothing is noticed", "padding.noticed.add(dim)", "pass", contrib("not_linear")),
        ("padding: through a softmax", "if dim not in normalised}", "}", widened("would_notice")),
        ("padding: of an extreme", "not dim.ratio.shared and not dim.copies}", "not dim.ratio.shared}",
         widened("would_notice")),
        ("padding: scales of the other operand", "_makers(analysis, number, 1 - index, dim)",
         "_makers(analysis, number, index, dim)", widened("scale_of_each_unit")),
        ("padding: a mean of several dims", 'mixed = pads[dim] == "mean" and axis is not dim', "mixed = False",
         widened("two_means")),
        ("padding: integers hold means", "not in DIVISIBLE\n    own", "in ()\n    own",
         widened("would_notice")),
        ("padding: any scale will do", "any(state == Scale(number, 1 - index) for index, state in operands.items())",
         "any(isinstance(state, Scale) for state in operands.values())", widened("another_scale")),
        ("padding: products of means are means", "if len(operands) > 1:", "if False:", widened("keeps_no_means")),
        ("padding: quotients by means are means", '"other" if divides else operands.get(1, "other"))',
         'operands.get(1, "other"))', widened("keeps_no_means")),
        ("padding: a number is added to zeros", 'return state if whole or state == "mean" else "other"', "return state",
         widened("number_is_added")),
        ("padding: a bias without the dim is added to zeros",
         'if held != {"mean"} and any(index > 1 and index not in operands',
         "if False and any(index > 1 and index not in operands",
         widened("number_is_added")),
        ("padding: extremes of means", 'state if state == "zero" and whole else "other"', "state",
         widened("keeps_no_means")),
        ("padding: activations keep means", 'state == "zero" and pointwise in ("zero", "relu")',
         'pointwise in ("zero", "relu")', contrib("not_linear")),
    ],
    "analysis/groups.py": [
        ("interface: what is fixed grows on request", "bool(reason) and not any(dim.fixed for dim in dims)",
         "bool(reason)", interface("fixed")),
        ("ratios: a frozen part", "group.reason = dim.ratio.root().frozen", "pass", widened("beside_fixed_ones")),
    ],
    "operations/widen/plan.py": [
        ("classes: what reads the dim is not asked", "if dims & (read | listed):", "if dims & listed:",
         interface("integers")),
        ("tables: new entries are classes", "if dims & (read | listed):", "if dims & read:", interface("vocabulary")),
        ("classes: under a softmax of any prior", "if normalised and prior:", "if False:", interface("softmax")),
        ("classes: under a softmax like others", 'return "never" if normalised else "prior", reason',
         'return "prior", reason', interface("softmax")),
        ("classes: under a softmax of integers",
         "if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in logits):", "if False:",
         interface("softmax_of_integers")),
        ("classes: infinities in front of a softmax", "unfit = dict(breaking) if normalised",
         "unfit = {} if normalised",
         interface("in_front_of")),
        ("classes: infinities behind a softmax", ' if number < max(normalised))', ")", interface("in_front_of")),
        ("classes: quotients are infinite", "if node.op in traits.QUOTIENTS else made", "if False else made",
         interface("divided_by")),
        ("classes: of integers", "if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in integers):",
         "if False:", interface("integers")),
        ("classes: a statistic over them", "unfit.get(dim) or dim.statistic or dim.copies for dim",
         "unfit.get(dim) or dim.copies for dim", interface("under_a_softmax_refuses")),
        ("classes: an extreme over them", "unfit.get(dim) or dim.statistic or dim.copies for dim",
         "unfit.get(dim) or dim.statistic for dim", interface("under_a_softmax_refuses")),
        ("classes: units that are rearranged", "if len(dims) > 1:", "if False:", interface("rearranged")),
        ("inputs: a softmax over them", '"a softmax over it would notice them" if normalised else reason', "reason",
         interface("softmax_over_inputs")),
        ("interface: old units are shifted", "if not compose(axis, shown).first[: axis.size].all():", "if False:",
         interface("never_shifted")),
        ("interface: patterns for hidden dims too", "for group in growable or on_request:",
         "for group in [*growable, *on_request]:", interface("leaves_the_interface")),
        ("interface: unsaid in the record", 'return {"interface": found} if found else {}', "return {}",
         interface("start_at_the_prior")),
        ("normalised units: zero_out", "for axis in said.normalised for dim in leaves(axis)):\n            node",
         "for axis in () for dim in leaves(axis)):\n            node", widened("nothing_but_copies")),
    ],
}  # fmt: skip


def _file_of(file: str, old: str) -> str:
    """Return where a text is: in the file that is named or, where it has moved, in the only other one of the room."""
    rooms = [ROOT / PACKAGE / Path(file).parent, ROOT / PACKAGE]
    for paths in ([ROOT / PACKAGE / file], *(sorted(room.rglob("*.py")) for room in rooms)):
        having = [path for path in paths if path.is_file() and path.read_text().count(old) == 1]
        if len(having) == 1:
            return str(having[0].relative_to(ROOT / PACKAGE))
    return file


_ROWS |= {
    "rules/experts.py": [
        (
            "MoE: gates and values by fours",
            "op.unify(first[1], rows)",
            "op.freeze(first[1], op.why('no'))",
            contrib("MoE"),
        ),
        ("MoE: hidden units are not summed", "op.contract(hidden, [(4, 2)])", "pass", contrib("MoE")),
        (
            "MoE: the stream is not summed",
            "op.contract(data[-1], [(0, len(data) - 1), (index, 2)])",
            "pass",
            contrib("MoE"),
        ),
        (
            "MoE: values in front of all gates",
            "Product((hidden, pair) if fusion == 1",
            "Product((hidden, pair) if fusion != 1",
            contrib("MoE"),
        ),
        (
            "MoE: the bias is of the hidden units",
            "(5, (expert, result[-1])),",
            "(5, (expert, hidden)),",
            contrib("MoE"),
        ),
    ],
    "analysis/routers.py": [
        (
            "routers: what counts tokens mixes nothing",
            "raise self._refuse(number, _MIXES)\n\n    def _written",
            "return 'zero'\n\n    def _written",
            ("experts", "capacity"),
        ),
        (
            "routers: places may be computed with",
            "if not alone and any(",
            "if False and any(",
            ("experts", "compute_with_places"),
        ),
        (
            "routers: outputs are not looked at",
            "        self._check_outputs()\n",
            "",
            ("experts", "places_that_are_returned"),
        ),
    ],
    "analysis/joint_experts.py": [
        (
            "shares: groups of a class are as those of a graph",
            'self.found.grouped |= state == "times" and axis.size > 1',
            "pass",
            ("experts", "cannot_be_cut"),
        ),
        (
            "shares: what nothing divides is divided",
            "self.found.divided |= weights | biases",
            "pass",
            ("joint_experts", "nothing_divides"),
        ),
    ],
    "rewrite/masks.py": [
        (
            "masks: no penalty",
            "np.array([NEVER, 0.0], np.float32)",
            "np.array([0.0, 0.0], np.float32)",
            ("experts", "every_router"),
        ),
    ],
    "rewrite/sums.py": [
        (
            "parts: copies of an expert share hidden units each in its own way",
            "spread=weighed.spread and not even",
            "spread=weighed.spread",
            ("experts", "interleaved"),
        ),
    ],
    "graph/sizes.py": [
        (
            "lengths: who cuts them does not know them",
            "dims[axis].dim_value = int(sum(parts))",
            "pass",
            ("sizes", "cuts_a_length"),
        ),
    ],
}

MUTATIONS = [Mutation(_file_of(file, row[1]), *row) for file, rows in _ROWS.items() for row in rows]


def mutated(mutation: Mutation, source: str) -> str:
    """Return the text of a file with the fault in it.

    Raises:
        ValueError: The text that it replaces does not occur once.
        SyntaxError: What comes out is no Python.
    """
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.what}: {mutation.file} has {source.count(mutation.old)} times {mutation.old!r}")
    changed = source.replace(mutation.old, mutation.new)
    compile(changed, mutation.file, "exec")
    return changed


@dataclass(frozen=True)
class Run:
    """How pytest ended: its exit code (None if it did not) and what it printed."""

    code: int | None
    text: str


def run_tests(package: Path, ground: Path, tests: Sequence[str], log: Path) -> Run:
    """Run tests of the ground with the package in a folder, in a process of its own."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    process = context.Process(target=_run_pytest, args=(str(package), str(ground), list(tests), str(log)))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return Run(None, "timeout")
    return Run(process.exitcode, log.read_text(errors="replace"))


def _run_pytest(package: str, ground: str, tests: list[str], log: str) -> None:
    """Run pytest with the mutated package, after making sure that it is that one."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ground)
    sys.dont_write_bytecode = True
    sys.path.insert(0, package)
    import pytest

    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    assert found.origin.startswith(package), found.origin
    options = ["-q", "-x", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(code)


def arguments_of(tests: tuple[str, str]) -> list[str]:
    """Return a selection as pytest takes it; a test that has moved is looked for in the other files."""
    texts = {file: file.read_text() for file in sorted((ROOT / "tests").rglob("test_*.py"))}
    named = [file for file in texts if file.stem == f"test_{tests[0]}"]
    files: dict[Path, None] = {}
    for word in tests[1].replace("(", "").replace(")", "").split(" or "):
        having = [file for file in texts if re.search(rf"def test_\w*{word.split('[')[0]}", texts[file])]
        files.update(dict.fromkeys([file for file in having if file in named] or having or named))
    return [*(str(file.relative_to(ROOT)) for file in files), "-k", tests[1]]


def try_mutation(mutation: Mutation, ground: Path) -> Outcome:
    """Break one rule in a copy of the package, and run its tests.

    Raises:
        ValueError: No tests were run.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant.") as folder:
        package = Path(folder).resolve()
        shutil.copytree(ROOT / PACKAGE, package / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / PACKAGE / mutation.file
        file.write_text(mutated(mutation, file.read_text()))
        done = run_tests(package, ground, arguments_of(mutation.tests), package / "log")
        killer = None if done.code == 0 else _killer(done)
    return Outcome(mutation, killer, time.perf_counter() - start)


def _killer(run: Run) -> str:
    """Return the test that failed, or what else happened."""
    if run.code is None:
        return run.text
    if run.code in (4, 5) or "in _run_pytest" in run.text:  # nothing selected, or not the mutated package
        raise ValueError(f"no tests were run: {run.text[-500:]}")
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/\S*/test_)?(\S.*?)(?: - .*)?$", run.text, re.MULTILINE)
    return found[1] if found else "the package is broken"


def lay_ground(ground: Path) -> None:
    """Copy the tests to a place where the package is not."""
    shutil.copytree(ROOT / "tests", ground / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", ground)
    (ground / "models").symlink_to(ROOT / "models")


def unmutated_failures(mutations: Sequence[Mutation], ground: Path, jobs: int) -> list[str]:
    """Run the tests of all mutations without any, file by file; return what fails."""
    selected: dict[str, list[str]] = {}
    for mutation in mutations:
        selected.setdefault(mutation.tests[0], []).append(f"({mutation.tests[1]})")

    def run_file(name: str) -> list[str]:
        expression = " or ".join(dict.fromkeys(selected[name]))
        done = run_tests(ROOT, ground, arguments_of((name, expression)), ground / f"{name}.log")
        return [] if done.code == 0 else [_killer(done)]

    with ThreadPoolExecutor(jobs) as pool:
        return [failure for found in pool.map(run_file, selected) for failure in found]


def table(outcomes: Sequence[Outcome]) -> str:
    """List what killed each mutation."""
    rows = [
        [outcome.mutation.file, outcome.mutation.what, outcome.killer or "SURVIVED", f"{outcome.seconds:.1f}"]
        for outcome in outcomes
    ]
    return markdown(["file", "mutation", "killed by", "s"], rows, texts=3)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break the growth rules one at a time, and run their tests.")
    parser.add_argument("--only", metavar="TEXT", action="append", default=[], help="mutations whose text has this")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--no-baseline", action="store_true", help="do not check that the tests pass unmutated")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutations; returns 1 if one survives."""
    options = _parse(arguments)
    wanted = [text.lower() for text in options.only]
    chosen = [m for m in MUTATIONS if not wanted or any(text in f"{m.file} {m.what}".lower() for text in wanted)]
    for mutation in chosen:
        mutated(mutation, (ROOT / PACKAGE / mutation.file).read_text())
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        ground = Path(folder).resolve()
        lay_ground(ground)
        failures = [] if options.no_baseline else unmutated_failures(chosen, ground, options.jobs)
        if failures:
            print("these tests fail without a mutation:", *failures, sep="\n", file=sys.stderr)
            return 2
        outcomes: list[Outcome] = []
        with ThreadPoolExecutor(options.jobs) as pool:
            for outcome in pool.map(lambda mutation: try_mutation(mutation, ground), chosen):
                outcomes.append(outcome)
                done = f"{len(outcomes)} of {len(chosen)}: {outcome.mutation.file}, {outcome.mutation.what}"
                print(f"{done}: {outcome.killer or 'SURVIVED'}", file=sys.stderr, flush=True)
    survivors = [outcome for outcome in outcomes if outcome.killer is None]
    print(table(outcomes))
    print(f"\n{len(outcomes)} mutations, {len(outcomes) - len(survivors)} killed, {len(survivors)} survived")
    print(*(f"- {outcome.mutation.file}: {outcome.mutation.what}" for outcome in survivors), sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
