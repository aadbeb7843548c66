"""Measure whether growing pays: three curves against all compute, on data that needs no download.

A large network from scratch, a small one trained on, and the small one grown into the large one: each annealed at
several budgets. Rates are chosen for each, by seeds of their own. Growing goes the way of a user: export,
``onnx-net2net widen`` or ``deepen``, ``verify``, ``checkpoint``, ``load_state_dict``.

    python tools/run_experiments.py                                   # all that is missing in results/runs.csv
    python tools/run_experiments.py --study 'width 4x' --seeds 2
    python tools/run_experiments.py --setting large --device cuda --out large
    python tools/run_experiments.py --redraw                          # tables and figures from the runs that are there

Every training is appended to `runs.csv` when it ends, and is not made again. The rest is made of that file.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from experiments import results
from experiments.lab import Lab
from experiments.studies import SETTINGS

RESULTS = Path(__file__).resolve().parent / "experiments" / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write tables and figures."""
    parser = argparse.ArgumentParser(description="Measure whether growing pays.")
    parser.add_argument("--study", action="append", help="names of studies (default: all)")
    parser.add_argument("--setting", choices=list(SETTINGS), default="small", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of PyTorch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many instead of the setting's")
    parser.add_argument("--scale", type=float, default=1.0, help="what budgets are multiplied by (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for checkpoints (default: a folder in --out)")
    parser.add_argument("--redraw", action="store_true", help="only tables and figures, from the runs in --out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    setting = SETTINGS[options.setting]()
    scaled = [study.scaled(options.scale) for study in setting.studies]
    known = [study.name for study in scaled]
    if unknown := set(options.study or ()) - set(known):
        parser.error(f"no study {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    studies = [study for study in scaled if not options.study or study.name in options.study]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if not options.redraw:
        # Networks as small as these are slower on several threads.
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high")
        lab = Lab(options.out, options.work or options.out / "checkpoints", options.device)
        seeds = range(setting.seeds if options.seeds is None else options.seeds)
        for study in studies:
            lab.study(study, seeds, setting.trials)
        for study in studies:
            lab.variants(study, seeds, setting.trials)
    print(results.summarize_folder(options.out, scaled, min(setting.trials)))


if __name__ == "__main__":
    main()
