"""Inputs of the user's own: token ids or text, one sample a line of JSON; or tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.huggingface.teacher import Teacher

MOST = 8
"""Samples that are taken."""

LONGEST = 256
"""Tokens of each that are taken."""


def read_samples(path: Path, teacher: Teacher) -> dict[str, torch.Tensor]:
    """Read samples: a line each, a list of token ids, or text, or an object with `input_ids` or `text`.

    Returns:
        int64 [samples, tokens] ids, all as long as the shortest.

    Raises:
        BadInputError: If there are none, or it is text and the folder has no tokenizer.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:MOST]
        entries = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    rows = [_ids(entry, teacher, f"{path}, line {number}") for number, entry in enumerate(entries, 1)]
    length = min(map(len, rows), default=0)
    if not length:
        raise BadInputError(f"{path} has no samples")
    return {"input_ids": torch.tensor([row[: min(length, LONGEST)] for row in rows], dtype=torch.int64)}


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """Read a file of tensors by the names of arguments, if it is one by its name; others are lines of JSON.

    Raises:
        BadInputError: If it cannot be read.
    """
    if path.suffix not in (".safetensors", ".npz", *state_dicts.TORCH):
        return None
    return {name: state_dicts.torch_tensor(stored.read()) for name, stored in state_dicts.read(path).items()}


def _ids(entry: Any, teacher: Teacher, where: str) -> list[int]:
    if isinstance(entry, dict):
        entry = entry.get("input_ids", entry.get("text"))
    if isinstance(entry, str):
        entry = _tokenizer(teacher)(entry)["input_ids"]
    config = teacher.skeleton.config
    size = getattr(config.get_text_config(), "vocab_size", 0)
    if not isinstance(entry, list) or not all(type(token) is int and 0 <= token < size for token in entry):
        raise BadInputError(f"{where}: neither text nor a list of token ids below {size}")
    return entry


def _tokenizer(teacher: Teacher) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(teacher.folder.path)
    except Exception as error:  # of transformers, of the files
        raise BadInputError(f"{teacher.folder.path} has no tokenizer for text: {one_line(error)}") from error
