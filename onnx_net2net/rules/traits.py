"""Traits of operators: facts that several parts of the package need, and that are not about axes.

Each trait is a set of operator names; ask with `node.op in traits.MOVES`. A rule says how an operator treats the axes
of its operands; a trait says what kind of operator it is. A list of operators elsewhere in the package is a trait that
belongs here. Code that needs more or less than a trait says so (`MOVES | {"Clip"}`).

    control     CONSTANTS, BRANCHES, LOOPS, COUNTED_LOOPS, SEQUENCES
    values      RENAMES, COPIES, CASTS, REFOLDS, TURNS, VIEWS, REARRANGES, SPLITS, CUTS, ROWS, PICKS, SCATTERS, MARKS,
                REPEATS, PIXEL_SHUFFLES, MOVES, INDEX_PATHS, GATE_PATHS, HANDED_ON, JOINS, PLACED, SHAPES, SHAPE_ONLY,
                BY_PLACE
    numbers     LOOKUPS, TABLES, LENGTHS, COUNTS, LIMITS, DOMAINS, LONG_LISTS, MASKING, RANDOM, BY_DATA, SIZED
    arithmetic  SUMS, ADDITIONS, SIGNS, TERMS, TIMES, QUOTIENTS, FACTORS, ABSORBING, ARITHMETIC, AFFINE, EXTREMES,
                COMMUTATIVE, DEGREES, SQUARES, AVERAGES, MEANS, LINEAR, BILINEAR, POSITIVE, HOMOGENEOUS, LINEAR_IN_EACH,
                LINEAR_IN_ALL, IN_PLACE, SHARES, PROBABILITIES, BOUNDED, STILL_BOUNDED, UNARY, ALONE, BENDS,
                BROADCASTING, FADING, STRICT
    layers      MATRICES, PRODUCTS, PLAIN_CONVOLUTIONS, TRANSPOSED, KERNELS, BIASED, LAST_LAYERS, PLAIN_LAYERS, LAYERS,
                CONVOLUTIONS, RECURRENT, ATTENTIONS, NORMS, UNIT_NORMS, ROW_NORMS, FIXED_NORMS, NORM_PARTS,
                DISTANCES, DEVIATIONS, GATES, STATISTICS, LEARNT, POOLS, CHOICES, ALONG, WINNERS, WHOLE_BIASES
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

EVERY = range(1000)
"""All inputs."""

# --- Control flow -------------------------------------------------------------------------------------------------

CONSTANTS = frozenset({"Constant"})
"""The result is an attribute."""

BRANCHES = frozenset({"If"})
"""One of the bodies runs; the first input says which one."""

COUNTED_LOOPS = frozenset({"Loop"})
"""Loops whose first two inputs say how long they run; so does the first output of the body, which they keep."""

LOOPS = frozenset({*COUNTED_LOOPS, "Scan"})
"""The body runs again and again; its inputs are those of the node, in their order."""

SEQUENCES = frozenset({"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert"})
"""The result is a sequence."""

# --- Values that are moved ----------------------------------------------------------------------------------------

RENAMES = frozenset({"Identity"})
"""The result is the first input under another name."""

COPIES = frozenset({*RENAMES, "Dropout"})
"""The result is the first input (in inference)."""

CASTS = frozenset({"Cast", "CastLike"})
"""The result is the first input in another type."""

REFOLDS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""The result has the values of the first input in the same order, in other axes."""

TURNS = frozenset({"Transpose"})
"""The result has the values of the first input with its axes in another order."""

VIEWS = frozenset({*REFOLDS, *TURNS, "Expand"})
"""The result shows the first input in other axes, as views of PyTorch do."""

REARRANGES = frozenset({*RENAMES, *CASTS, *VIEWS - {"Expand"}, "DequantizeLinear"})
"""The result is the first input, each value once: a rearranged weight is still one weight, in other axes or types."""

SPLITS = frozenset({"Split"})
"""The results are the first input in parts, from its beginning to its end."""

CUTS = frozenset({*SPLITS, "Slice"})
"""The results are ranges of the first input."""

ROWS = frozenset({"Gather"})
"""The result has the entries along one axis of the first input that the second one lists."""

PICKS = frozenset({*ROWS, "GatherND", "GatherElements"})
"""The result has the entries of the first input that the second one lists."""

SCATTERS = frozenset({"ScatterND", "ScatterElements"})
"""The result is the first input, with the third one written to or added at the places that the second one lists."""

MARKS = frozenset({"OneHot", "ScatterElements", "Scatter"})
"""The result marks the places that an input lists, or has something written there."""

REPEATS = frozenset({"Expand", "Tile"})
"""The result repeats the first input."""

PIXEL_SHUFFLES = frozenset({"DepthToSpace", "SpaceToDepth"})
"""The result has the values of the first input, with channels for places, or the other way round."""

MOVES = frozenset({*COPIES, *CASTS, *VIEWS, *CUTS, *PICKS, *REPEATS, *PIXEL_SHUFFLES})
"""The results have values of the first input, in another place or type, and no others."""

INDEX_PATHS = MOVES | {"Clip"}
"""What may stand between indices that a model is given and the table that they are looked up in."""

GATE_PATHS = INDEX_PATHS | {"ReduceSum", "Add", "Max", "Where", "ScatterElements", "Not"}
"""What may stand between the gates of a router, their sum and what they weigh: it keeps the sum from being 0."""

HANDED_ON: dict[str, Sequence[int]] = {
    **dict.fromkeys((*MOVES - PIXEL_SHUFFLES, "Pad", "Clip", "ReduceMax", "ReduceMin",
                     "ReverseSequence", "Floor", "Ceil", "Round", "Abs", "Trilu"), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), EVERY), "Where": (1, 2), "ScatterND": (0, 2), "ScatterElements": (0, 2),
}  # fmt: skip
"""Inputs whose values reach the result, perhaps rounded, clipped or with harmless ones beside them."""

JOINS = frozenset({"Concat"})
"""The result has the values of all inputs, end to end."""

PLACED = MOVES | JOINS | {"Pad"}
"""The results have values of the inputs in other places, perhaps with constants around them."""

SHAPES = frozenset({"Shape", "Size"})
"""The result is the shape of the input, or follows from it."""

SHAPE_ONLY = SHAPES | {"EyeLike", "RandomNormalLike", "RandomUniformLike"}
"""The result depends on the shape of the input, not on its values."""

BY_PLACE = MOVES | JOINS | SHAPES | MARKS
"""What may read the places that a node chose: it moves them, looks entries up or writes them."""

# --- Numbers that are not data ---------------------------------------------------------------------------------------

LOOKUPS: dict[str, tuple[dict[int, int], str]] = {
    "Gather": ({1: 0}, "axis"), "GatherElements": ({1: 0}, "axis"), "ScatterElements": ({1: 0}, "axis"),
    "GatherBlockQuantized": ({1: 0}, "gather_axis"), "GatherND": ({1: 0}, "batch_dims"), "ScatterND": ({1: 0}, ""),
    "EmbedLayerNormalization": ({0: 2, 1: 4, 8: 3}, ""), "RotaryEmbedding": ({1: 2, 3: 1}, ""),
    "ArrayFeatureExtractor": ({1: 0}, "-1"),
}  # fmt: skip
"""For each input that holds indices the table that it indexes, and the attribute (or number) of the table's axis."""

TABLES = frozenset((kind, 0) for kind in ROWS)
"""Inputs (operator, index) that are tables of rows, where they are weights: embeddings."""

LENGTHS = {("LSTM", 4): "", ("GRU", 4): "", ("RNN", 4): "", ("ReverseSequence", 1): "time_axis"}
"""Inputs (operator, index) that are lengths of sequences, and the attribute of the axis of input 0 that they bound."""

COUNTS = frozenset({("Reshape", 1), ("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Range", 1), ("Loop", 0),
                    ("TopK", 1), ("Resize", 3), ("Slice", 2)})  # fmt: skip
"""Inputs (operator, index) that are sizes and counts."""

LIMITS = frozenset({("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Clip", 1), ("Clip", 2), ("Pad", 2), ("OneHot", 2)})
"""Inputs (operator, index) that are scales and limits: floats that nobody trains."""

DOMAINS = frozenset({("Sqrt", 0), ("Log", 0), ("BatchNormalization", 4)})
"""Inputs (operator, index) that have to be positive."""

LONG_LISTS = frozenset({("ScatterND", 1)})
"""Inputs (operator, index) that list a place for each element that is written."""

MASKING = frozenset({"Equal", "Not", "And", "Or", "Sub", "Mul", "ReduceSum", "CumSum", "Greater", "Less", "Where"})
"""Operators that read a mask of whole numbers."""

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                    "Multinomial"})  # fmt: skip
"""Operators whose results differ from run to run."""

BY_DATA = frozenset({"NonZero", "Compress", "Unique", "Split", "NonMaxSuppression"})
"""Operators that may count how many entries come out while they run."""

SIZED = frozenset({
    "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "DFT", "STFT", "Conv",
    "ConvInteger", "ConvTranspose", "DeformConv", "MaxPool", "AveragePool", "LpPool", "MaxUnpool", "MaxRoiPool",
    "Col2Im", "CenterCropPad", "AffineGrid", "GridSample", "RoiAlign", "ImageDecoder",
})  # fmt: skip
"""Operators whose attributes or inputs say how large a result is; nobody makes lists of sizes with them."""

# --- Arithmetic ---------------------------------------------------------------------------------------------------

SUMS = frozenset({"Add", "Sum"})
"""The result is the sum of the inputs."""

ADDITIONS = frozenset({*SUMS, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "QLinearAdd"})
"""The operator adds activations to one another, whatever else it does."""

SIGNS: dict[str, tuple[int, int]] = {"Add": (1, 1), "Sub": (1, -1)}
"""Sums of two terms: the sign of each."""

TERMS = frozenset({*SUMS, *SIGNS})
"""The result is the sum of the inputs, some of them with another sign."""

TIMES = frozenset({"Mul"})
"""The result is the product of the inputs, unit by unit."""

QUOTIENTS = frozenset({"Div"})
"""The result is the first input divided by the second one, unit by unit."""

FACTORS = TIMES | QUOTIENTS
"""The result is the first input times the second one, or its inverse."""

ABSORBING = TIMES | {"And"}
"""The result is 0 wherever one of the inputs is."""

ARITHMETIC = frozenset({*SIGNS, *FACTORS})
"""The four operations on two operands."""

AFFINE = TIMES | {"Add"}
"""What scales and shifts units where it reads a constant."""

EXTREMES = frozenset({"Max", "Min"})
"""The result is the largest or smallest of the inputs, unit by unit."""

COMMUTATIVE = frozenset({*SUMS, *EXTREMES, "Mul", "Mean"})
"""The inputs may change places."""

DEGREES: dict[str, tuple[float, ...]] = {
    "Mul": (1, 1), "MatMul": (1, 1), "Div": (1, -1), "Reciprocal": (-1,), "Sqrt": (0.5,),
}  # fmt: skip
"""Degrees of homogeneity: with an input a times as large the result is a^degree times as large, for positive a."""

SQUARES: dict[str, float] = {"ReduceL2": 0.5, "ReduceSumSquare": 1.0}
"""The result is the sum of squares of the first input along axes, to this power."""

AVERAGES = frozenset({"ReduceMean"})
"""The result is the mean of the first input along axes."""

MEANS = frozenset({*AVERAGES, "ReduceSum", "AveragePool", "GlobalAveragePool"})
"""The result is sums or means over parts of the first input."""

LINEAR = frozenset({*MOVES, *MEANS, "Neg"})
"""f(a x) = a f(x) for every number a, where x is the first input."""

BILINEAR = TIMES | {"MatMul", "Einsum"}
"""The result is linear in each input, and nothing is added to it."""

POSITIVE = frozenset({"Relu", "LeakyRelu", "PRelu", "Abs", "MaxPool", "GlobalMaxPool", "Max", "Min", "ReduceMax",
                      "ReduceMin", "ReduceL1"})  # fmt: skip
"""f(a x) = a f(x) for positive numbers a only, where x is all inputs (the first of PRelu)."""

LINEAR_IN_EACH: dict[str, Sequence[int]] = {
    "Mul": (0, 1), "Div": (0,), "MatMul": (1, 0), "Gemm": (1, 0), "Conv": (1, 0), "ConvTranspose": (1, 0),
    "Einsum": EVERY, "DequantizeLinear": (0,), "LeakyRelu": (0,), "Relu": (0,), "Abs": (0,), "PRelu": (0,),
    "MaxPool": (0,), "GlobalMaxPool": (0,), "ReduceMax": (0,), "ReduceMin": (0,),
}  # fmt: skip
"""Inputs that can be multiplied instead of the result, each alone, the likely ones first."""

LINEAR_IN_ALL: dict[str, Sequence[int]] = {
    "Add": EVERY, "Sub": EVERY, "Sum": EVERY, "Mean": EVERY, "Max": EVERY, "Min": EVERY, "Concat": EVERY,
    "Where": (1, 2), "Gemm": (2,), "Conv": (2,), "ConvTranspose": (2,), "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,),
}  # fmt: skip
"""Inputs that have to be multiplied together instead of the result, as far as the node has them."""

HOMOGENEOUS = frozenset({*LINEAR, *POSITIVE, *JOINS, *SUMS, "Sub", "Mean", "Where", "Pad", "Resize", "ScatterND"})
"""f(a x) = a f(x) for positive numbers a, where x is all inputs that hold data (zeros if the node pads)."""

IN_PLACE = frozenset({*COPIES, *CASTS, *CUTS, *JOINS, "DequantizeLinear", "Neg", "Pad", "AveragePool", "MaxPool",
                      "GlobalAveragePool", "GlobalMaxPool", "Resize", "Relu", "LeakyRelu", "Abs", "Tile",
                      "Trilu"})  # fmt: skip
"""The first input has the axes of the result, in the same places."""

SHARES = frozenset({"Softmax"})
"""The results along an axis are above 0, and their sum is 1."""

PROBABILITIES = SHARES | {"Sigmoid"}
"""The result lies between 0 and 1, and comes near to both."""

BOUNDED = frozenset({*PROBABILITIES, "HardSigmoid", "Tanh", "Erf"})
"""The result lies between -1 and 1 whatever the input."""

STILL_BOUNDED = MOVES | JOINS | AVERAGES
"""The result lies between the smallest and the largest value of the inputs."""

UNARY: dict[str, tuple[str, ...]] = {
    "linear": ("Identity", "Neg"),
    "zero": ("Abs", "Asinh", "Atan", "CastLike", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish",
             "LeakyRelu", "Mish", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Swish", "Tanh"),
    "relu": ("Relu", "ThresholdedRelu"),
    "any": ("BitwiseNot", "Cos", "HardSigmoid", "IsInf", "IsNaN", "Not", "Sigmoid", "Softplus"),
    "partial": ("Acos", "Acosh", "Asin", "Atanh", "Cosh", "Exp", "Log", "Reciprocal", "Sqrt", "Tan"),
}  # fmt: skip
"""Operators on each unit alone, by what they make of a unit of zeros or of random values.

zero: phi(0) = 0, so that a unit of zeros stays one; relu: the same, but such a unit gets no gradient; partial: it can
make an infinity or no number of a unit of random values, which nobody could then weigh by 0.
"""

ALONE = frozenset(kind for kinds in UNARY.values() for kind in kinds) | {"Clip", "Cast"}
"""Operators on each unit alone."""

BENDS = (ALONE | {*EXTREMES, "Pow", "PRelu"}) - LINEAR - CASTS
"""The result is no linear function of the first input, unit by unit."""

BROADCASTING = frozenset({
    *ARITHMETIC, *SUMS, *EXTREMES, "Mean", "Where", "PRelu", "Pow", "Mod", "And", "Or", "Xor", "BitShift", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
})  # fmt: skip
"""Operators on operands that are broadcast to the result, unit by unit."""

FADING = frozenset({"Sigmoid", "Exp", "Softplus", "Relu", "HardSigmoid"})
"""f(x) = 0 where x is far below 0, and f(x) >= 0 elsewhere."""

STRICT = frozenset({"Sigmoid", "Exp", "Softplus"})
"""Those of them whose results are above 0 elsewhere."""

# --- Layers -------------------------------------------------------------------------------------------------------

MATRICES = frozenset({"Gemm", "MatMul"})
"""Products with a matrix, whose weight is input 1 as a rule; Gemm may have a bias."""

PRODUCTS = frozenset({*MATRICES, "FusedMatMul"})
"""Products of matrices."""

TRANSPOSED = frozenset({"ConvTranspose"})
"""Transposed convolutions: axis 0 of the weight is the input axis, axis 1 the output axis (of each group)."""

PLAIN_CONVOLUTIONS = frozenset({"Conv"})
"""Convolutions of floats as torch's Conv is one."""

KERNELS = frozenset({*PLAIN_CONVOLUTIONS, *TRANSPOSED})
"""Convolutions with a weight (input 1) and perhaps a bias (input 2) of floats."""

BIASED = frozenset({*KERNELS, "Gemm"})
"""Layers that may have a bias, input 2."""

LAST_LAYERS: dict[str, Sequence[int]] = {"MoE": (4, 5)}
"""Inputs that hold the weights and the bias of the last layers that are fused into an operator: the result is linear in
both together."""

LAYERS = frozenset({*KERNELS, *PRODUCTS})
"""Layers of weights whose result is linear in the weights and in the bias."""

PLAIN_LAYERS = frozenset({*PLAIN_CONVOLUTIONS, *MATRICES})
"""Layers that PyTorch calls Linear and Conv."""


def weight_axes(kind: str, attrs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the positions of the output axis and of the input axis of a layer's weight.

    Args:
        kind: The layer's operator, one of LAYERS.
        attrs: Its attributes.
    """
    turned = kind in TRANSPOSED or (kind in PRODUCTS and not attrs.get("transB", 0))
    return (1, 0) if turned else (0, 1)


CONVOLUTIONS = frozenset({*KERNELS, "FusedConv", "ConvInteger", "QLinearConv"})
"""Convolutions: the channels are axis 1 of the data; kernels work along the axes behind it."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Whole recurrent layers, with a state of `hidden_size` units."""

ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""Whole attentions: queries, keys and values in, mixed values out."""

ROW_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Normalisers of each position over its units; the last inputs are a scale and perhaps a shift."""

UNIT_NORMS = frozenset({*ROW_NORMS, "InstanceNormalization", "GroupNormalization"})
"""Normalisers by statistics of the data, which the model computes while it runs."""

FIXED_NORMS = frozenset({"BatchNormalization"})
"""Normalisers by statistics that are constants (in inference): a scale and a shift of each channel."""

NORMS = frozenset({*UNIT_NORMS, *FIXED_NORMS})
"""Normalisers with a scale (input 1) and perhaps a shift (input 2)."""

NORM_PARTS = frozenset({*AVERAGES, "Sub", "Pow", "Mul", "Div"})
"""What reads the data where a normalisation of rows is written in parts."""

DISTANCES = frozenset({"Sub", "Pow", "Mul", "Abs", "Cast"})
"""What makes squares of the distance from the mean where a normalisation is written in parts."""

DEVIATIONS = frozenset({"Reciprocal", "Pow", "Div", "Sqrt"})
"""What makes the factor 1 / deviation where a normalisation is written in parts."""

GATES: dict[str, tuple[tuple[int, ...], ...]] = {
    "LSTM": ((0, 2, 3, 1),), "GRU": ((1, 0, 2), (0, 1, 2)), "RNN": ((0,),),
}  # fmt: skip
"""Where the gates of frameworks are among those of ONNX (iofc, zrh): PyTorch has ifgo and rzn, Keras ifco and zrh."""

STATISTICS = frozenset({("BatchNormalization", 3), ("BatchNormalization", 4)})
"""Inputs (operator, index) that are measured by training, not trained."""

LEARNT = frozenset({("PRelu", 1), ("SkipLayerNormalization", 4), ("SkipSimplifiedLayerNormalization", 4)}).union(
    ((norm, index) for norm in NORMS for index in (1, 2)),
    ((f"Skip{norm}", index) for norm in ROW_NORMS - {"RMSNormalization"} for index in (2, 3)),
)
"""Inputs (operator, index) that are learnt even where no layer is near, and where one number is for all units."""

POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"})
"""Poolings of each channel along positions."""

CHOICES = SHARES | {"LogSoftmax", "ArgMax"}
"""The units along `axis` (the last by default) are choices."""

ALONG = ROW_NORMS | CHOICES | JOINS | CUTS | {"LpNormalization", "RotaryEmbedding"}
"""Operators that work along axes of their own, and keep the others."""

WINNERS = frozenset({"TopK", "ArgMax"})
"""The result lists the places of the largest units."""

WHOLE_BIASES = frozenset({"DequantizeLinear", "QLinearConv", "QGemm"})
"""Operators that may have a bias of whole numbers."""
