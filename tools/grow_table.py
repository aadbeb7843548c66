"""Grow modules of public libraries, and classes written by hand, in memory, and count those that compute the same.

Each (random weights) is grown by 1.5, and by 2 where a norm lets less than half of the weights grow by 1.5. `grow`
itself compares in double precision; here its result is compared once more, on inputs and weights of its own, and models
of transformers are saved and loaded again. They run in one process, one
after the other.

    pip install '.[train]' torchvision timm transformers
    python tools/grow_table.py --json results.jsonl > table.md
    python tools/grow_table.py --only 'hand/*'
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint_table import CASES, note, randomise
from grow_classes import CLASSES
from torch import nn
from workers import LostError, in_processes

FACTORS = (1.5, 2.0)

ENOUGH = 0.5
"""The share of the weights that has to grow by the first factor, or the second is tried."""

TOLERANCE = 1e-8
"""Largest difference of the outputs in double precision, relative to the largest output."""

LIBRARIES = (*CASES, "hand")


def names_of(library: str) -> Sequence[str]:
    """Return the architectures of a library."""
    return tuple(CLASSES) if library == "hand" else tuple(CASES[library][0])


def make(library: str, name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Make a module and what it is called with."""
    torch.manual_seed(0)
    if library == "hand":
        return CLASSES[name]()
    module, x = CASES[library][1](name)
    return module, (x,)


def outputs(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run a module in double precision, also where its class computes in less (norms, rotary embeddings)."""
    from onnx_net2net.framework.live.example import Example

    return Example(inputs).double()(module)


def off(one: nn.Module, other: nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    """Return the largest relative difference of two modules."""
    pairs = zip(outputs(one, inputs), outputs(other, inputs), strict=True)
    return max((float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs if a.is_floating_point()),
               default=0.0)  # fmt: skip


def attempt(library: str, name: str) -> dict[str, Any]:
    """Grow one module."""
    from onnx_net2net import RefusedError, grow

    module, inputs = make(library, name)
    randomise(module)
    module = module.double().eval()
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters())}
    for factor in FACTORS:
        try:
            grown = grow(module, inputs, factor=factor)
        except RefusedError as error:
            found = {"result": "refused", "reason": str(error), "factor": factor, **found}
            continue
        except Exception as error:
            return {**found, "result": "failed", "reason": f"{type(error).__name__}: {error}"[:300], "factor": factor}
        if found.get("result") == "ok" and grown.report.covered <= found["covered"]:
            break
        error = off(module, grown.module, inputs)
        found.update(result="ok" if error <= TOLERANCE else "WRONG", reason="", factor=factor, error=error,
                     covered=round(grown.report.covered, 3), loads=loads(library, module, grown.module, inputs),
                     numbers=len(grown.report.numbers))  # fmt: skip
        if grown.report.covered >= ENOUGH:
            break
    return found


def loads(library: str, module: nn.Module, grown: nn.Module, inputs: Sequence[torch.Tensor]) -> bool | None:
    """Tell whether a model of transformers computes the same after both were saved and loaded.

    Both, since loading itself moves what a class computes: a rotary table is made again, in single precision.
    """
    if library != "transformers":
        return None
    try:
        return off(loaded(module), loaded(grown), inputs) <= TOLERANCE
    except Exception:
        return False


def loaded(module: nn.Module) -> nn.Module:
    """Save a model of transformers, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(module).save_pretrained(folder)
        return type(module).from_pretrained(folder, dtype=torch.float64).eval()


def work(job: tuple[str, str]) -> dict[str, Any]:
    """Try one module."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    started = time.perf_counter()
    result = attempt(*job)
    return {"library": job[0], "model": job[1], **result, "seconds": round(time.perf_counter() - started, 1)}


def lost(job: tuple[str, str], error: LostError) -> dict[str, Any]:
    """Say that a module ended its process, or did not end."""
    return {"library": job[0], "model": job[1], "result": "failed", "reason": str(error)}


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table by library, and what did not pass."""
    yield "| library | architectures | exact | of these half of the weights grew | refused | other |"
    yield "|---|--:|--:|--:|--:|--:|"
    for library in LIBRARIES:
        own = [result for result in results if result["library"] == library]
        exact = [result for result in own if result["result"] == "ok"]
        refused = [result for result in own if result["result"] == "refused"]
        most = sum(result["covered"] >= ENOUGH for result in exact)
        row = library, len(own), len(exact), most, len(refused), len(own) - len(exact) - len(refused)
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""
    for result in results:
        where = f"{result['library']}/{result['model']}"
        if result["result"] != "ok":
            yield f"- {where}: {result['result']}: {result['reason']}"
        elif result["covered"] < ENOUGH:
            yield f"- {where}: {result['covered']:.0%} of the weights grew"
        if result.get("loads") is False:
            yield f"- {where}: is exact, and does not load by its config"


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="library/architecture")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a file, and run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results, one line for each")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each module")
    options = parser.parse_args()
    if options.show:
        lines = [json.loads(line) for line in options.show.read_text().splitlines()]
        print("\n".join(table(list({(line["library"], line["model"]): line for line in lines}.values()))))
        return
    jobs = [(library, name) for library in LIBRARIES for name in names_of(library)
            if any(fnmatch.fnmatchcase(f"{library}/{name}", pattern) for pattern in options.only)]  # fmt: skip
    results = []
    for result in in_processes(work, jobs, 1, options.limit, lost):
        results.append(result)
        note(f"{result['library']}/{result['model']}", result, options.json)
    print("\n".join(table(results)))


if __name__ == "__main__":
    sys.exit(main())
