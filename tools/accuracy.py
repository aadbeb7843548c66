"""Test accuracy of ONNX digit classifiers, measured with onnxruntime.

Needs only numpy and onnxruntime: the test images lie next to the models, in ``models/digits_test.npz``.

    python tools/accuracy.py models/digits_mlp.onnx models/digits_resnet.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

TEST_SET = Path(__file__).resolve().parent.parent / "models" / "digits_test.npz"

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def load_test_set(path: Path = TEST_SET) -> tuple[np.ndarray, np.ndarray]:
    """Read the held-out digits.

    Args:
        path: An ``.npz`` file with the arrays ``image`` and ``label``.

    Returns:
        Images ``[n, 1, 8, 8]`` (float32, 0 to 1) and labels ``[n]`` (int64).
    """
    with np.load(path) as arrays:
        return arrays["image"], arrays["label"]


def _batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut into batches of exactly `size`; the last one is filled up with copies of its last image."""
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    missing = size - len(batches[-1])
    batches[-1] = np.concatenate([batches[-1], np.repeat(batches[-1][-1:], missing, axis=0)])
    return batches


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    """Run a classifier with one image input on all images.

    Args:
        model: The ONNX file; its batch axis may be dynamic or fixed.
        images: ``[n, 1, 8, 8]``.

    Returns:
        The first output of the model, ``[n, classes]``.
    """
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    # A model exported without a dynamic batch axis says an int here, a dynamic one a name.
    size = entry.shape[0] if isinstance(entry.shape[0], int) else len(images)
    batches = _batches(images.astype(_INPUT_TYPES[entry.type]), size)
    outputs = [session.run(None, {entry.name: batch})[0] for batch in batches]
    return np.concatenate(outputs)[: len(images)]


def correct(model: Path, images: np.ndarray, labels: np.ndarray) -> int:
    """Count the images that a classifier gets right."""
    return int((logits(model, images).argmax(axis=1) == labels).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per model: correct / total and the accuracy."""
    parser = argparse.ArgumentParser(description="Test accuracy of ONNX digit classifiers.")
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=TEST_SET, help="test set (default: %(default)s)")
    options = parser.parse_args(arguments)
    for path in [options.data, *options.models]:
        if not path.is_file():
            parser.error(f"no such file: {path}")
    images, labels = load_test_set(options.data)
    for model in options.models:
        right = correct(model, images, labels)
        print(f"{model}: {right}/{len(labels)} correct ({right / len(labels):.2%})")


if __name__ == "__main__":
    main()
