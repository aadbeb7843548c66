"""More tokens: new rows of the embedding and of the head, behind the old ones, whose logits stay.

A new row is the mean of the old ones. So a new token is looked up as an average token, and its logit is the average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from onnx_net2net.algebra.maps import identity, pad
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.framework.huggingface.parameters import StudentParameter
from onnx_net2net.framework.huggingface.skeleton import Skeleton
from onnx_net2net.operations.widen.options import target_size

NAME = "vocabulary"
"""What the vocabulary is called in sizes."""


def tokens_of(skeleton: Skeleton, size: int | str) -> tuple[int, int]:
    """Return how many tokens a class knows, and how many it is to know.

    Args:
        skeleton: The class.
        size: Tokens (32064), more of them (+64), or a multiplier (1.5x).

    Raises:
        BadInputError: If it is none of these, or less than there are.
        RefusedError: If the class has no vocabulary.
    """
    config = skeleton.config
    old = getattr(config.get_text_config(), "vocab_size", None)
    if old is None or not list(_rows(skeleton, old)):
        raise RefusedError(f"{type(skeleton.model).__name__} has no vocabulary")
    new = target_size(NAME, size, old)
    if new < old:
        raise BadInputError(f"there are {old} tokens already; {new} would be fewer")
    return old, new


def with_tokens(
    skeleton: Skeleton, parameters: Mapping[str, StudentParameter], old: int, new: int
) -> dict[str, StudentParameter]:
    """Return the student's parameters with rows for more tokens."""
    found = dict(parameters)
    for name in _rows(skeleton, old):
        own = parameters[name]
        axes = own.growth.axes if own.growth else tuple(AxisGrowth(identity(size)) for size in own.stored.shape)
        axes = (AxisGrowth(pad(old, new, "mean")), *axes[1:])
        found[name] = replace(own, growth=replace(own.growth, axes=axes) if own.growth else WeightGrowth(axes))
    return found


def _rows(skeleton: Skeleton, size: int) -> Iterator[str]:
    """Yield the parameters that have a row for each token."""
    model: Any = skeleton.model
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    own = {id(tensor) for table in tables if table is not None for tensor in table.parameters(recurse=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in own and tensor.shape[0] == size:
            yield name
