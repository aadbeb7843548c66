"""Take models of Keras and Flax all the way: export, widen, carry the weights, load them into the wider class, compare.

Keras exports by `model.export(format="onnx")` with the backend that is asked for, Flax by jax2onnx. Both classes, the
old one and the wider one, then compute in double precision, but that Keras multiplies in single precision with torch.
The largest difference is told relative to the largest output.

    python tools/checkpoint_jax_table.py                       # all, as a table
    python tools/checkpoint_jax_table.py keras-jax --only GRU  # one model with one backend

Needs: pip install keras torch onnxscript jax flax jax2onnx orbax-checkpoint h5py msgpack
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("keras-torch", "keras-jax", "flax")
"""Framework and backend; each runs in a process of its own."""

FACTORS = (1.5, 2.0)
"""The second is for what norms allow at whole factors only."""

Rows = list[tuple[str, str]]


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit with 1 if a model is not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    options = parser.parse_args(argv)
    if options.kind is None:
        results = [
            subprocess.run([sys.executable, __file__, kind, "--only", options.only]).returncode for kind in KINDS
        ]
        return max(results)
    os.environ["KERAS_BACKEND"] = options.kind.removeprefix("keras-")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    run = run_flax if options.kind == "flax" else run_keras
    print(f"\n| {options.kind} | {' | '.join(f'{factor:g}x' for factor in FACTORS)} |\n|---|{'---|' * len(FACTORS)}")
    is_exact = True
    for name, results in run(options.only):
        print(f"| {name} | {' | '.join(results)} |", flush=True)
        is_exact &= not any("differs" in result or "Error" in result for result in results)
    return 0 if is_exact else 1


def sizes_of(widths: Mapping[str, tuple[str, int]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the arguments of a class whose tensors have these shapes."""
    return {width: shapes[name][axis] for width, (name, axis) in widths.items()}


def moved(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return values as training leaves them, no two alike."""
    return np.asarray(values + 0.1 * rng.random(values.shape), values.dtype)


def inputs_of(example: Any, rng: np.random.Generator) -> np.ndarray:
    """Draw a batch."""
    shape = (2, *example.shape)
    return rng.integers(0, example.tokens, shape).astype(np.int32) if example.tokens else rng.standard_normal(shape)


def result_of(work: Callable[[Path], tuple[float, Mapping[str, int], Mapping[str, int]]]) -> str:
    """Return a cell of the table: the error and the widths that grew, or why it was refused."""
    from onnx_net2net.errors import Net2NetError

    with tempfile.TemporaryDirectory() as folder:
        try:
            error, old, new = work(Path(folder))
        except Net2NetError as refusal:
            return f"{type(refusal).__name__}: {refusal}".replace("|", "/")
    grown = ", ".join(f"{name} {old[name]} -> {new[name]}" for name in new if new[name] != old[name])
    return f"{error:.0e}{'' if error < 1e-6 else ' differs'} ({grown})"


def relative(one: Any, other: Any) -> float:
    """Return the largest difference, relative to the largest value."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(one - other).max() / np.abs(one).max())


# --- Keras -------------------------------------------------------------------------------------------------------


def run_keras(only: str) -> Any:
    """Yield the name and the results of each model."""
    import keras_classes

    for name, example in keras_classes.MODELS.items():
        if only in name:
            yield name, [result_of(lambda folder, f=factor, e=example: keras_way(e, f, folder)) for factor in FACTORS]


def keras_way(example: Any, factor: float, folder: Path) -> tuple[float, dict[str, int], dict[str, int]]:
    """Return the error of a wider model with grown weights, and the widths of both."""
    import keras

    from onnx_net2net import checkpoint, widen

    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    keras.utils.clear_session()
    rng = np.random.default_rng(0)
    model, x = example.make(), inputs_of(example, rng)
    model.set_weights([moved(values, rng) for values in model.get_weights()])
    model(x if example.tokens else x.astype(np.float32))
    model.save_weights(folder / "teacher.weights.h5")
    model.save(folder / "teacher.keras")
    signature = [keras.InputSpec(shape=x.shape, dtype=model.inputs[0].dtype)]
    model.export(folder / "teacher.onnx", format="onnx", verbose=False, input_signature=signature)
    student = widen(folder / "teacher.onnx", factor=factor, framework="keras").student
    grown = checkpoint(folder / "teacher.onnx", student, folder / "teacher.weights.h5")
    grown.save(folder / "student.weights.h5")
    old = sizes_of(example.widths, {entry.name: entry.old for entry in grown.entries})
    new = sizes_of(example.widths, {entry.name: entry.new for entry in grown.entries})
    checkpoint(folder / "teacher.onnx", student, folder / "teacher.keras").save(folder / "student.keras")
    loaded = keras.saving.load_model(folder / "student.keras")
    if any(not np.array_equal(a, b) for a, b in zip(loaded.get_weights(), _weights(example, new, folder), strict=True)):
        raise AssertionError("the .keras file and the .weights.h5 file differ")
    return keras_error(example, new, x, folder), old, new


def _weights(example: Any, sizes: Mapping[str, int], folder: Path) -> list[np.ndarray]:
    model = example.make(**sizes)
    model.load_weights(folder / "student.weights.h5")
    return model.get_weights()


def keras_error(example: Any, sizes: Mapping[str, int], x: np.ndarray, folder: Path) -> float:
    """Compare the two classes in double precision."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    try:
        keras.config.set_dtype_policy("float64")
        keras.config.set_floatx("float64")
        teacher, student = example.make(), example.make(**sizes)
        teacher.load_weights(folder / "teacher.weights.h5")
        student.load_weights(folder / "student.weights.h5")
        outputs = [keras.ops.convert_to_numpy(model(x)) for model in (teacher, student)]
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")
        if keras.backend.backend() == "jax":
            jax.config.update("jax_enable_x64", False)
    return relative(*outputs)


# --- Flax --------------------------------------------------------------------------------------------------------


def run_flax(only: str) -> Any:
    """Yield the name and the results of each module."""
    import flax_classes

    for name, example in flax_classes.MODELS.items():
        if only in name:
            yield name, [result_of(lambda folder, f=factor, e=example: flax_way(e, f, folder)) for factor in FACTORS]


def flax_way(example: Any, factor: float, folder: Path) -> tuple[float, dict[str, int], dict[str, int]]:
    """Return the error of a wider module with grown weights, and the widths of both."""
    import jax
    import orbax.checkpoint as ocp
    from flax import nnx, serialization
    from jax2onnx import to_onnx

    from onnx_net2net import checkpoint, widen

    rng = np.random.default_rng(0)
    module, x = example.make(rngs=nnx.Rngs(0)), inputs_of(example, rng)
    module.eval()
    tree = jax.tree.map(lambda value: moved(np.asarray(value), rng), nnx.to_pure_dict(_state(module)))
    nnx.update(module, tree)
    (folder / "teacher.msgpack").write_bytes(serialization.to_bytes(tree))
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "teacher", tree)
    dtype = np.int32 if example.tokens else np.float32
    to_onnx(
        module, [jax.ShapeDtypeStruct(x.shape, dtype)], return_mode="file", output_path=str(folder / "teacher.onnx")
    )
    student = widen(folder / "teacher.onnx", factor=factor, framework="flax").student
    grown = checkpoint(folder / "teacher.onnx", student, folder / "teacher.msgpack")
    grown.save(folder / "student.msgpack")
    checkpoint(folder / "teacher.onnx", student, folder / "teacher").save(folder / "student")
    old = sizes_of(example.widths, {entry.name: entry.old for entry in grown.entries})
    new = sizes_of(example.widths, {entry.name: entry.new for entry in grown.entries})
    wider = example.make(rngs=nnx.Rngs(0), **new)
    like = nnx.to_pure_dict(_state(wider))
    from_msgpack = serialization.from_bytes(like, (folder / "student.msgpack").read_bytes())
    with ocp.StandardCheckpointer() as reader:
        from_orbax = reader.restore(folder / "student", like)
    if not jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), from_msgpack, from_orbax)):
        raise AssertionError("the .msgpack file and the folder of Orbax differ")
    return flax_error(example, tree, from_msgpack, new, x), old, new


def _state(module: Any) -> Any:
    from flax import nnx

    return nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))


def flax_error(example: Any, old: Any, new: Any, sizes: Mapping[str, int], x: np.ndarray) -> float:
    """Compare the two classes in double precision."""
    import jax
    from flax import nnx

    jax.config.update("jax_enable_x64", True)
    try:
        outputs = []
        for tree, widths in ((old, {}), (new, sizes)):
            module = example.make(rngs=nnx.Rngs(0), **widths)
            module.eval()
            nnx.update(module, jax.tree.map(lambda value: np.asarray(value, np.float64), tree))
            outputs.append(module(x))
    finally:
        jax.config.update("jax_enable_x64", False)
    return relative(*outputs)


if __name__ == "__main__":
    sys.exit(main())
