"""Write a hash of every student that the operations make of some models: a change that keeps them all changes nothing.

One line a student: the hash of its files, the model, what was done. Where an operation refuses, the line says so.

    python tools/fingerprints.py models corpus --sample 60 --out before.txt
    python tools/fingerprints.py models corpus --sample 60 --compare before.txt
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from run_corpus import find_models, read_model, redrawn
from workers import LostError, in_processes

sys.path.insert(0, str(Path(__file__).parent.parent))

from onnx_net2net import Model, Net2NetError, checkpoint, deepen, load, narrow, transfer, widen

FACTORS = (1.37, 2.0)
MAPS = ("replicate", "zero_out", "zero_in", "random_pad")
LIMIT = 600.0
"""Seconds for all students of a model."""

Made = Model | Mapping[str, Any]


def operations(teacher: Model) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Yield what is done to a model, by name."""
    for factor in FACTORS:
        for kind in MAPS:
            yield f"widen {factor} {kind}", lambda f=factor, k=kind: widen(teacher, factor=f, map=k).student
        yield f"widen {factor} torch", lambda f=factor: widen(teacher, factor=f, framework="torch").student
        yield f"narrow {factor}", lambda f=factor: narrow(widen(teacher, factor=f).student).student
    yield "deepen all", lambda: deepen(teacher, all=True).student
    yield "deepen residual", lambda: deepen(teacher, all=True, way="residual").student
    yield "deepen blocks", lambda: deepen(teacher, depth=2).student
    yield "narrow deeper", lambda: narrow(deepen(teacher, all=True).student).student
    yield "transfer", lambda: transfer(teacher, redrawn(_wider(teacher)), prove=False).student
    yield "checkpoint", lambda: checkpoint(teacher, _wider(teacher)).arrays()


def _wider(teacher: Model) -> Model:
    return widen(teacher, factor=1.5, framework="torch").student


def fingerprint(made: Made) -> str:
    """Return the hash of a model's files, or of the names and values of a state dict."""
    digest = hashlib.sha256()
    if isinstance(made, Model):
        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder, "student.onnx"))
            for file in sorted(Path(folder).iterdir()):
                digest.update(file.read_bytes())
    else:
        for name, values in sorted(made.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def students_of(path: Path) -> list[str]:
    """Return the lines of a model."""
    try:
        teacher = load(read_model(path))
    except Net2NetError as error:
        return [f"{type(error).__name__} {path.name}: load"]
    lines = []
    for name, make in operations(teacher):
        try:
            found = fingerprint(make())
        except Net2NetError as error:
            found = type(error).__name__
        except Exception as error:
            found = f"crash:{type(error).__name__}"
        lines.append(f"{found} {path.name}: {name}")
    return lines


def _lost(path: Path, error: LostError) -> list[str]:
    return [f"lost {path.name}: {error}"]


def main() -> int:
    """Hash, and compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of models (.onnx, .onnx.xz)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N models, spread over folders, always the same")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the lines there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="exit 1 where a line is another")
    options = parser.parse_args()
    paths = find_models(options.folders, [], False, options.sample)
    lines = sorted(
        (line for made in in_processes(students_of, paths, options.jobs, LIMIT, _lost) for line in made),
        key=lambda line: line.partition(" ")[2],
    )
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    if options.compare is None:
        return 0
    changes = list(difflib.unified_diff(options.compare.read_text().splitlines(), lines, n=0, lineterm=""))
    print("\n".join(changes) if changes else f"{len(lines)} students are what they were")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
