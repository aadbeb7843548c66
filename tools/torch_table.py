"""Make a trainable module of every graph of some folders, compare, and see which weights have a gradient.

With ``--train`` each graph is widened first, trained for some steps as a module, and its weights go back into the file,
which onnxruntime then runs: the outputs have to be those of the module.

    pip install '.[torch]'
    python tools/torch_table.py ../shared/corpus --json results.jsonl > table.md
    python tools/torch_table.py ../shared/corpus --sample 60 --train 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from run_corpus import exporter, find_models, markdown, read_model
from workers import LostError, in_processes

if TYPE_CHECKING:
    import torch

    from onnx_net2net.model.model import Model

STATUSES = ("equal", "refused", "differs", "no weights", "no teacher", "not grown", "crash")
ENOUGH = 0.99
"""Share of the weight elements that should have a gradient."""


@dataclass
class Result:
    """What became of a graph.

    Attributes:
        path: The graph.
        family: The folder that it is in.
        exporter: What exported it.
        status: One of `STATUSES`.
        error: One line that says why it is not equal.
        floats: Elements of its float constants.
        weights: Of those that are parameters.
        learning: Of the parameters that have a gradient in a run on generated inputs.
        seconds: Time to make the module and to compare.
        loss: Of the last step, as a part of the first one's.
    """

    path: str
    family: str
    exporter: str
    status: str = "crash"
    error: str = ""
    floats: int = 0
    weights: int = 0
    learning: int = 0
    seconds: float = 0.0
    loss: float | None = None


def run(path: Path, steps: int) -> Result:
    """Do one graph."""
    from onnx_net2net.errors import BadInputError, Net2NetError, NotEquivalentError, RefusedError

    result = Result(str(path), path.resolve().parent.name, exporter(path))
    try:
        _run(path, steps, result)
    except Exception as error:
        kinds = {RefusedError: "not grown", NotEquivalentError: "differs", BadInputError: "refused"}
        result.status = next((kind for error_kind, kind in kinds.items() if isinstance(error, error_kind)), "crash")
        if str(error).startswith(("the teacher", "no generated input")):
            result.status = "no teacher"
        text = " ".join(str(error).split())[:600]
        result.error = text if isinstance(error, Net2NetError) else f"{type(error).__name__}: {text}"
    return result


def _run(path: Path, steps: int, result: Result) -> None:
    import torch

    from onnx_net2net import load, to_torch, widen

    torch.set_num_threads(1)
    model = load(read_model(path))
    result.floats = model.parameters
    if steps:
        model = widen(model, factor=2).student
    started = time.perf_counter()
    module = to_torch(model)
    result.seconds = time.perf_counter() - started
    result.weights = sum(value.numel() for value in module.parameters())
    if not result.weights:
        result.status = "no weights"
        return
    inputs = _inputs(model)
    result.learning = _learning(module, inputs)
    if steps:
        _train(module, inputs[0], steps, result)
        _check_refit(model, module)
    result.status = "equal"


def _inputs(model: Model) -> list[list[torch.Tensor]]:
    """Return some sets of inputs that onnxruntime accepts."""
    from onnx_net2net.framework.formats.state_dicts import torch_tensor
    from onnx_net2net.run.inputs import accepted, draw, input_specs
    from onnx_net2net.run.session import LEVELS, Runner, provider_name

    specs, rng = input_specs(model.proto), np.random.default_rng(0)
    with model.on_disk() as path:
        runner = Runner(path, LEVELS[0], provider=provider_name("cpu"))
        binding = accepted(specs, runner, rng, wanted=1)[0]
        drawn = []
        for _ in range(8):
            feeds = draw(specs, binding, rng)
            with contextlib.suppress(Exception):  # an exporter may have written down what one input routes
                runner(feeds)
                drawn.append(feeds)
    drawn = drawn[:3]
    return [[torch_tensor(feeds[spec.name]) for spec in specs] for feeds in drawn]


def _loss(outputs: Any) -> torch.Tensor:
    """Return a number that hangs on every element of all float outputs."""
    import torch

    tensors = [value for value in _flat(outputs) if value.is_floating_point() and value.numel()]
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(value.shape, generator=generator) for value in tensors]
    return sum(((v.float() - t) ** 2).mean() for v, t in zip(tensors, targets, strict=True))  # type: ignore[return-value]


def _flat(outputs: Any) -> list[torch.Tensor]:
    return [one for value in outputs for one in _flat(value)] if isinstance(outputs, list | tuple) else [outputs]


def _learning(module: torch.nn.Module, inputs: list[list[torch.Tensor]]) -> int:
    """Return the elements of the parameters that have a gradient other than zero somewhere."""
    for given in inputs:
        loss = _loss(module(*given))
        if not loss.requires_grad:  # everything goes through a quantizer
            return 0
        loss.backward()
    found = [value for value in module.parameters() if value.grad is not None and bool((value.grad != 0).any())]
    module.zero_grad()
    return sum(value.numel() for value in found)


def _train(module: torch.nn.Module, inputs: list[torch.Tensor], steps: int, result: Result) -> None:
    import torch

    module.train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-4, eps=1e-6)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        try:
            loss = _loss(module(*inputs))
        except ValueError:  # one value a channel has no variance
            module.eval()
            loss = _loss(module(*inputs))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    module.eval()
    result.loss = losses[-1] / losses[0]


def _check_refit(model: Model, module: torch.nn.Module) -> None:
    """Put the weights of a module back into the file, and compare."""
    from onnx_net2net import load, refit
    from onnx_net2net.framework.fx.trainable import check_module

    with tempfile.TemporaryDirectory() as folder:
        student, trained = Path(folder) / "student.onnx", Path(folder) / "trained.onnx"
        model.save(student)
        refit(student, module.state_dict()).save(trained)
        check_module(module, load(trained))


def lost(job: Path, error: LostError) -> Result:
    """Say what becomes of a graph whose process died or hung."""
    return Result(str(job), job.resolve().parent.name, exporter(job), error=str(error))


def table(results: Sequence[Result]) -> str:
    """Return the table by family and exporter."""
    rows = []
    kinds = sorted({(result.family, result.exporter) for result in results})
    for kind in (*kinds, None):
        here = [result for result in results if kind in (None, (result.family, result.exporter))]
        counts, equal = Counter(result.status for result in here), [r for r in here if r.status == "equal"]
        weights, learning = (sum(getattr(result, name) for result in equal) for name in ("weights", "learning"))
        floats, enough = sum(r.floats for r in equal), sum(r.learning >= ENOUGH * r.weights for r in equal)
        seconds = [result.seconds for result in equal] or [0.0]
        rows.append([
            *(kind or ("all", "")), str(len(here)), *(str(counts[status]) for status in STATUSES),
            f"{weights / max(floats, 1):.2%}", f"{learning / max(weights, 1):.2%}", str(enough),
            f"{np.median(seconds):.1f}", f"{max(seconds):.1f}",
        ])  # fmt: skip
    header = ["family", "exporter", "graphs", *STATUSES, "parameters of floats", "with gradient", f">= {ENOUGH:.0%}",
              "median s", "slowest s"]  # fmt: skip
    return markdown(header, rows, texts=2)


def main() -> None:
    """Do the graphs, and print the table and what is not equal."""
    parser = argparse.ArgumentParser(description="Make a trainable module of every graph of some folders.")
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="searched for .onnx and .onnx.xz")
    parser.add_argument("--filter", metavar="PATTERN", action="append", default=[], help="only these paths or names")
    parser.add_argument("--sample", metavar="N", type=int, help="only N graphs, spread over folders, always the same")
    parser.add_argument("--train", metavar="STEPS", type=int, default=0, help="widen, train, and put weights back")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--timeout", metavar="S", type=float, default=300, help="a graph (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write one JSON line a graph")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    paths = find_models(options.folders, options.filter, False, options.sample)
    results = []
    for result in in_processes(partial(run, steps=options.train), paths, options.jobs, options.timeout, lost):
        results.append(result)
        if options.json:
            with options.json.open("a") as file:
                print(json.dumps(asdict(result)), file=file)
    print(table(results))
    for result in sorted(results, key=lambda r: (STATUSES.index(r.status), r.error)):
        few = result.learning < ENOUGH * result.weights
        if result.status != "equal" or few:
            why = result.error or f"{result.learning:,} of {result.weights:,} elements have a gradient"
            print(f"- {result.status}: {result.family}/{Path(result.path).name}: {why}")


if __name__ == "__main__":
    main()
