"""Repeat the experiments of the Net2Net paper, on data that needs no download.

Each trains a teacher in PyTorch, exports it, grows it with ``onnx-net2net``, checks it, takes the weights back into a
larger PyTorch class, and trains that on, beside random initialization and random padding.

    python tools/run_experiments.py                                   # small: some ten minutes on two idle cores
    python tools/run_experiments.py --setting large --device cuda --processes 1 --out large
    python tools/run_experiments.py --experiment figure4 --seeds 2
    python tools/run_experiments.py --redraw                          # figures from the curves that are there

Writes a CSV file of curves and figures for every experiment, a summary of all, and the commands of the first seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from experiments import results
from experiments.definitions import EXPERIMENTS, SETTINGS, Bench, run

RESULTS = Path(__file__).resolve().parent / "experiments" / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and write what is kept after every seed."""
    parser = argparse.ArgumentParser(description="Repeat the experiments of the Net2Net paper.")
    parser.add_argument("--experiment", action="append", choices=list(EXPERIMENTS), help="(default: all)")
    parser.add_argument("--setting", choices=list(SETTINGS), default="small", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of PyTorch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many instead of the setting's")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of one thread (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--redraw", action="store_true", help="only tables and figures, from the curves in --out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        seeds = options.seeds or SETTINGS[options.setting].seeds
        names = options.experiment or EXPERIMENTS
        jobs = [(name, options.setting, seed, options.device) for name in names for seed in range(seeds)]
        _run_all(jobs, options.processes, options.out)
    print(results.summarize_folder(options.out))


def _run_all(jobs: Sequence[tuple[str, str, int, str]], processes: int, out: Path) -> None:
    start = time.perf_counter()
    done: dict[str, list[Bench]] = {name: [] for name, *_ in jobs}
    # A forked PyTorch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            bench = future.result()
            same = done[bench.experiment]
            same.append(bench)
            same.sort(key=lambda other: other.seed)
            results.write_curves(out / f"{bench.experiment}.csv", [curve for other in same for curve in other.curves])
            (out / f"{bench.experiment}.sh").write_text("\n".join(same[0].commands) + "\n")
            minutes = (time.perf_counter() - start) / 60
            print(f"{bench.experiment}, seed {bench.seed}: {minutes:.1f} min", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
