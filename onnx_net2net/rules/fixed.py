"""Operators of ai.onnx whose dims stay fixed, and why; those of `indexing` at least pass some."""

from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op

_FOLLOWS_VALUES = "how many units come out depends on values"
_RANDOM = "it draws random values, and copies of a unit would draw others"
_SEQUENCE = "it works on a sequence of tensors, whose dims are not followed"
_OPTIONAL = "its value may be absent, and its dims are not followed"
_STRINGS = "it works on strings, which no weight reads"
_TABLE = "it computes a table from its size, and a larger one has other entries"

FIXED: dict[str, str] = {
    "AffineGrid": "it makes a grid of positions, whose number is part of the function",
    "Bernoulli": _RANDOM,
    "BlackmanWindow": _TABLE,
    "ConcatFromSequence": _SEQUENCE,
    "DynamicSlice": "its bounds are computed while it runs",
    "EyeLike": "it makes a matrix of ones on a diagonal, which ties its rows to its columns one by one",
    "HammingWindow": _TABLE,
    "HannWindow": _TABLE,
    "ImageDecoder": "it decodes a file to pixels",
    "LinearAttention": "it keeps a state of keys by values whose widths and scale are tied to each other",
    "MaxUnpool": "its indices count through all its axes",
    "MelWeightMatrix": _TABLE,
    "Multinomial": _RANDOM,
    "NonMaxSuppression": _FOLLOWS_VALUES,
    "NonZero": _FOLLOWS_VALUES,
    "Optional": _OPTIONAL,
    "OptionalGetElement": _OPTIONAL,
    "OptionalHasElement": _OPTIONAL,
    "RandomNormalLike": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "RegexFullMatch": _STRINGS,
    "SequenceAt": _SEQUENCE,
    "SequenceConstruct": _SEQUENCE,
    "SequenceEmpty": _SEQUENCE,
    "SequenceErase": _SEQUENCE,
    "SequenceInsert": _SEQUENCE,
    "SequenceLength": _SEQUENCE,
    "SequenceMap": _SEQUENCE,
    "SplitToSequence": _SEQUENCE,
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "TfIdfVectorizer": "it counts words of a vocabulary",
    "Unique": _FOLLOWS_VALUES,
}
"""Operator -> why none of its dims grows, as a message goes on after "has no growth rule: "."""


def _fix(kind: str, reason: str) -> None:
    @rule(kind)
    def fixed(op: Op) -> None:
        """Freeze every axis."""
        op.freeze_all(f"has no growth rule: {reason}")


for _kind, _reason in FIXED.items():
    _fix(_kind, _reason)
