"""Widen models, train each student in JAX by jaxonnxruntime, put the weights back, and compare with onnxruntime.

    pip install jax absl-py jaxonnxruntime==0.3.0
    python tools/jax_table.py models ../shared/corpus --sample 40

`ok`: the loss fell in 20 steps of Adam, and onnxruntime computes with the file what JAX computed in the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from run_corpus import find_models, markdown, read_model
from workers import LostError, in_processes

STEPS, RATE = 20, 1e-4
TOLERANCE = 1e-3
"""Between JAX and onnxruntime, relative to the largest output: both compute in single precision."""

Outcome = tuple[Path, str, str]
"""The model, what became of it, and why."""


def run(path: Path) -> Outcome:
    """Take one model the whole way."""
    from onnx_net2net import RefusedError, load, widen

    try:
        student = widen(load(read_model(path)), factor=1.5).student
    except RefusedError as error:
        return path, "not grown", str(error)
    try:
        difference = _train(student)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return path, "fails in JAX", f"{type(error).__name__}: {lines[0][:200]}"
    return path, "ok" if difference < TOLERANCE else "differs", f"{difference:.1e}"


def _train(student: Any) -> float:
    """Train a student; return how far JAX and onnxruntime are apart afterwards."""
    import jax
    import jax.numpy as jnp
    import onnx
    from jaxonnxruntime.call_onnx import call_onnx_model
    from safetensors.numpy import save_file

    from onnx_net2net import refit, session
    from onnx_net2net.framework.fx.parameters import trained_of

    with tempfile.TemporaryDirectory() as folder:
        file, weights = Path(folder) / "student.onnx", Path(folder) / "trained.safetensors"
        student.save(file)
        feeds = _feeds(student)
        run_jax, constants = call_onnx_model(onnx.load(file), feeds)
        names = [one.constant for one in trained_of(student).trained if one.kind == "parameter"]
        parameters = {name: constants[name] for name in names}
        outputs = run_jax(constants, feeds)
        keys = jax.random.split(jax.random.key(0), len(outputs))
        targets = [jax.random.normal(key, jnp.shape(value)) for key, value in zip(keys, outputs, strict=True)]

        def loss(own: dict[str, Any]) -> Any:
            pairs = zip(run_jax({**constants, **own}, feeds), targets, strict=True)
            floats = [(a, b) for a, b in pairs if jnp.isdtype(a.dtype, "real floating")]
            return sum(((value - target) ** 2).mean() for value, target in floats)

        first, last, parameters = _adam(loss, parameters)
        if not last < first:
            raise ValueError(f"the loss went from {first:.3g} to {last:.3g}")
        save_file({name: np.array(value) for name, value in {**constants, **parameters}.items()}, weights)
        expected = run_jax({**constants, **parameters}, feeds)
        computed = session(refit(file, weights)).run(None, feeds)
    pairs = zip(expected, computed, strict=True)
    return max(float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in pairs)


def _feeds(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return inputs that onnxruntime accepts."""
    from onnx_net2net.run.inputs import accepted, draw, input_specs
    from onnx_net2net.run.session import LEVELS, Runner, provider_name

    specs, rng = input_specs(model.proto), np.random.default_rng(0)
    with model.on_disk() as path:
        binding = accepted(specs, Runner(path, LEVELS[0], provider=provider_name("cpu")), rng, wanted=1)[0]
    return draw(specs, binding, rng)


def _adam(loss: Any, parameters: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """Train parameters; return the first and the last loss, too."""
    import jax

    both = jax.jit(jax.value_and_grad(loss))
    first, means = None, jax.tree.map(lambda value: (0 * value, 0 * value), parameters)
    for step in range(1, STEPS + 1):
        value, gradients = both(parameters)
        first = float(value) if first is None else first
        for name, gradient in gradients.items():
            mean, square = 0.9 * means[name][0] + 0.1 * gradient, 0.999 * means[name][1] + 0.001 * gradient**2
            means[name] = mean, square
            scale = (square / (1 - 0.999**step)) ** 0.5 + 1e-6
            parameters[name] = parameters[name] - RATE * mean / (1 - 0.9**step) / scale
    return first or 0.0, float(both(parameters)[0]), parameters


def _lost(path: Path, error: LostError) -> Outcome:
    return path, "fails in JAX", str(error)


def main() -> None:
    """Do the models, and print the table and what is not ok."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="searched for .onnx and .onnx.xz")
    parser.add_argument("--sample", metavar="N", type=int, help="only N graphs, spread over folders, always the same")
    parser.add_argument("--timeout", metavar="S", type=float, default=120, help="a graph (default: %(default)s)")
    options = parser.parse_args()
    outcomes = list(in_processes(run, find_models(options.folders, [], False, options.sample), 1,
                                 options.timeout, _lost))  # fmt: skip
    counts = Counter(status for _, status, _ in outcomes)
    print(markdown(["models", *counts], [[str(len(outcomes)), *map(str, counts.values())]], texts=0))
    for path, status, why in sorted(outcomes, key=lambda outcome: outcome[1]):
        print(f"- {status}: {path.resolve().parent.name}/{path.name}: {why}")


if __name__ == "__main__":
    main()
