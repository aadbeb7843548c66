"""What is kept of the study of transfer: runs and similarities, and what is made of these.

* ``transfer.csv``: for each pair of teacher and target the similarities, and for each arm the chosen rate and the test
  accuracies, mean and standard deviation over seeds;
* ``transfer_kinds.csv``: the same over all pairs and over those of a kind: the mean over pairs of each seed, then mean
  and standard deviation over seeds;
* ``transfer_correlations.csv``: how each similarity goes with the gain over random weights, over a data set's pairs;
* ``transfer.png`` and ``transfer_curves.png`` show the last two.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

EPOCHS = (0, 1, 2, 5)
RANDOM, DPIAT, OURS = ARMS = ("random", "dpiat", "transfer")
VALIDATION, TEST = "validation", "test"
MEASURES = ("kept", "filled", "dpiat", "agreement")
ALL = "all"
SHOWN = ((0, "o"), (1, "x"))  # epochs in the figure of similarities, and their marks


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is transferred to what.

    Attributes:
        data: The data set.
        kind: How the target differs from the teacher.
        teacher, target: Names of networks.
    """

    data: str
    kind: str
    teacher: str
    target: str

    def __str__(self) -> str:
        return f"{self.data}, {self.teacher} -> {self.target}"


@dataclasses.dataclass(frozen=True)
class Run:
    """How one network learned.

    Attributes:
        pair: Teacher and target.
        arm: Where its weights came from.
        rate: The learning rate.
        images: On which it was evaluated: `VALIDATION` or `TEST`.
        seed: Of everything random.
        accuracies: After each of `EPOCHS`.
    """

    pair: Pair
    arm: str
    rate: float
    images: str
    seed: int
    accuracies: tuple[float, ...]


Alike: TypeAlias = Mapping[Pair, list[dict[str, float]]]
"""The similarities of each pair, by measure, a dict for each seed."""


# --- files --------------------------------------------------------------------------------------------


def write_runs(folder: Path, runs: Iterable[Run], alike: Alike) -> None:
    """Write what `summarize_folder` starts from: one row for each run, and for each pair and seed."""
    rows = [
        {**dataclasses.asdict(run.pair), "arm": run.arm, "rate": run.rate, "images": run.images, "seed": run.seed}
        | {f"epoch {epoch}": accuracy for epoch, accuracy in zip(EPOCHS, run.accuracies, strict=True)}
        for run in runs
    ]
    _write(folder / "transfer_runs.csv", rows)
    pairs = [dataclasses.asdict(pair) | {"seed": seed} | one for pair in alike for seed, one in enumerate(alike[pair])]
    _write(folder / "transfer_similarities.csv", pairs)


def read_runs(folder: Path) -> tuple[list[Run], Alike]:
    """Read what `write_runs` has written."""
    runs, alike = [], {}
    for row in _read(folder / "transfer_runs.csv"):
        values = tuple(float(row[f"epoch {epoch}"]) for epoch in EPOCHS)
        runs.append(Run(_pair(row), row["arm"], float(row["rate"]), row["images"], int(row["seed"]), values))
    for row in _read(folder / "transfer_similarities.csv"):
        alike.setdefault(_pair(row), []).append({measure: float(row[measure]) for measure in MEASURES})
    return runs, alike


def _pair(row: Mapping[str, str]) -> Pair:
    return Pair(*(row[field.name] for field in dataclasses.fields(Pair)))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- tables -------------------------------------------------------------------------------------------


def best_rate(runs: Sequence[Run]) -> float:
    """Return the rate that is best on average after the epochs of training."""
    scores = {
        rate: statistics.fmean(sum(run.accuracies[1:]) for run in runs if run.rate == rate)
        for rate in sorted({run.rate for run in runs})
    }
    return max(scores, key=scores.__getitem__)


def by_pair(runs: Iterable[Run], alike: Alike) -> list[dict[str, Any]]:
    """Return for each pair the similarities and how each arm did on the test images."""
    tested = [run for run in runs if run.images == TEST]
    rows = []
    for pair, measured in alike.items():
        row: dict[str, Any] = dataclasses.asdict(pair)
        row |= {measure: float(np.mean([one[measure] for one in measured])) for measure in MEASURES}
        for arm in ARMS:
            of_arm = [run for run in tested if (run.pair, run.arm) == (pair, arm)]
            row |= {f"{arm} rate": of_arm[0].rate}
            row |= {f"{arm} {name}": value for name, value in _moments([run.accuracies for run in of_arm]).items()}
        rows.append(row)
    return rows


def by_kind(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return for each data set and arm how all pairs, and those of each kind, did on the test images."""
    tested = [run for run in runs if run.images == TEST]
    seeds = sorted({run.seed for run in tested})
    rows = []
    for data in _different(run.pair.data for run in tested):
        for kind in (ALL, *_different(run.pair.kind for run in tested if run.pair.data == data)):
            for arm in ARMS:
                some = [run for run in tested if run.pair.data == data and kind in (ALL, run.pair.kind)]
                some = [run for run in some if run.arm == arm]
                means = [np.mean([run.accuracies for run in some if run.seed == seed], 0) for seed in seeds]
                pairs = len({run.pair for run in some})
                rows.append({"data": data, "kind": kind, "pairs": pairs, "arm": arm, **_moments(means)})
    return rows


def _moments(accuracies: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return means and standard deviations of accuracies ``[seeds, epochs]``."""
    means = np.mean(accuracies, 0)
    spreads = np.std(accuracies, 0, ddof=1) if len(accuracies) > 1 else np.zeros(len(EPOCHS))
    return {
        name: float(value)
        for epoch, mean, spread in zip(EPOCHS, means, spreads, strict=True)
        for name, value in ((f"{epoch}", mean), (f"{epoch} sd", spread))
    }


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how each similarity goes with the gain of each arm after each number of epochs.

    Args:
        rows: Of `by_pair`.

    Returns:
        Pearson's and Spearman's coefficients over the pairs of each data set.
    """
    found = []
    for data in _different(row["data"] for row in rows):
        some = [row for row in rows if row["data"] == data]
        for arm in (DPIAT, OURS):
            for measure in MEASURES:
                for epoch in EPOCHS:
                    both = [row[measure] for row in some], [gain(row, arm, epoch) for row in some]
                    coefficients = {
                        "pearson": float(stats.pearsonr(*both).statistic),
                        "spearman": float(stats.spearmanr(*both).statistic),
                    }
                    what = {"data": data, "pairs": len(some), "arm": arm, "measure": measure, "epoch": epoch}
                    found.append(what | coefficients)
    return found


def gain(row: Mapping[str, Any], arm: str, epoch: int) -> float:
    """Return by how much an arm is better than random weights, from a row of `by_pair`."""
    return float(row[f"{arm} {epoch}"] - row[f"{RANDOM} {epoch}"])


def _different(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def markdown(kinds: Iterable[Mapping[str, Any]], correlated: Iterable[Mapping[str, Any]]) -> str:
    """Return two tables: accuracies by kind of pair, and the correlations of the gain of `transfer`."""
    epochs = " | ".join("right after" if epoch == 0 else f"epoch {epoch}" for epoch in EPOCHS)
    lines = [f"| data | pairs | arm | {epochs} |", f"|---|---|---|{'--:|' * len(EPOCHS)}"]
    for row in kinds:
        cells = [f"{row[f'{epoch}']:.1%} ± {100 * row[f'{epoch} sd']:.1f}" for epoch in EPOCHS]
        lines.append(f"| {row['data']} | {row['kind']} ({row['pairs']}) | {row['arm']} | {' | '.join(cells)} |")
    lines += ["", f"| data | arm | measure | {epochs} |", f"|---|---|---|{'--:|' * len(EPOCHS)}"]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in correlated:
        cell = f"{row['pearson']:.2f}, {row['spearman']:.2f}"
        grouped.setdefault((row["data"], row["arm"], row["measure"]), []).append(cell)
    lines += [f"| {' | '.join([*group, *cells])} |" for group, cells in grouped.items()]
    return "\n".join(lines) + "\n"


# --- figures ------------------------------------------------------------------------------------------


def draw_gains(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the gain of `transfer` over random weights against each similarity, a point a pair."""
    from matplotlib.lines import Line2D

    sets, kinds = (_different(row[name] for row in rows) for name in ("data", "kind"))
    canvas, axes = _panels(len(sets), len(MEASURES), (3 * len(MEASURES) + 1.6, 2.9 * len(sets)))
    for (data, measure), ax in zip([(data, measure) for data in sets for measure in MEASURES], axes.flat, strict=True):
        for number, kind in enumerate(kinds):
            some = [row for row in rows if (row["data"], row["kind"]) == (data, kind)]
            for epoch, mark in SHOWN:
                x, y = [row[measure] for row in some], [gain(row, OURS, epoch) for row in some]
                ax.scatter(x, y, marker=mark, color=f"C{number}", s=28, linewidth=1.3, alpha=0.85)
        ax.set(title=f"{data}: {measure}", xlim=(-0.05, 1.05))
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("similarity")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy, less that\nof random weights")
    key = [Line2D([], [], color=f"C{number}", linewidth=4, label=kind) for number, kind in enumerate(kinds)]
    for epoch, mark in SHOWN:
        label = f"after epoch {epoch}" if epoch else "right after transfer"
        key.append(Line2D([], [], color="black", marker=mark, linestyle="", label=label))
    canvas.legend(handles=key, loc="outside right center", fontsize=9)
    canvas.savefig(path, dpi=90)


def draw_curves(path: Path, kinds: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracies of the arms by kind of pair: the mean and a standard deviation over seeds."""
    sets, titles = (_different(row[name] for row in kinds) for name in ("data", "kind"))
    canvas, axes = _panels(len(sets), len(titles), (2.1 * len(titles) + 0.6, 2.6 * len(sets)))
    for (data, kind), ax in zip([(data, kind) for data in sets for kind in titles], axes.flat, strict=True):
        some = [row for row in kinds if (row["data"], row["kind"]) == (data, kind)]
        for row, mark in zip(some, ("s", "x", "o"), strict=True):
            means, spreads = ([row[f"{epoch}{suffix}"] for epoch in EPOCHS] for suffix in ("", " sd"))
            ax.errorbar(EPOCHS, means, spreads, marker=mark, markersize=4, linewidth=1.2, capsize=2, label=row["arm"])
        pairs = f"{some[0]['pairs']} pair{'s' if some[0]['pairs'] > 1 else ''}"
        ax.set_title(f"{data}: {kind}\n({pairs})", fontsize=9)
        ax.set(ylim=(0, 1.02), xticks=EPOCHS)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("epochs")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    canvas.savefig(path, dpi=90)


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a canvas of so many inches, which no window shows, and its panels."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=size, layout="constrained")
    return canvas, canvas.subplots(rows, columns, sharey="row", squeeze=False)


# --- all of it ----------------------------------------------------------------------------------------


def summarize_folder(folder: Path) -> str:
    """Make tables and figures of the runs in a folder, and return the tables as markdown."""
    runs, alike = read_runs(folder)
    rows, kinds = by_pair(runs, alike), by_kind(runs)
    correlated = correlations(rows)
    _write(folder / "transfer.csv", rows)
    _write(folder / "transfer_kinds.csv", kinds)
    _write(folder / "transfer_correlations.csv", correlated)
    draw_gains(folder / "transfer.png", rows)
    draw_curves(folder / "transfer_curves.png", kinds)
    return markdown(kinds, correlated)
