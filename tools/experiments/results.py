"""What is made of the runs: a table of each study, and figures."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab import SCRATCH, Run, read_runs
from experiments.studies import GROWN, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARMS = ("small, trained on", "large, from scratch", "grown")
COLORS = ("#888888", "#1f77b4", "#d62728")
NEAR = 1e-3
"""Runs whose compute differs by less than this part have the same budget."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm at one budget, over all seeds.

    Attributes:
        study: Its name.
        arm: `ARMS`, or the name of a variant.
        compute: All compute, in steps of the large network.
        share: Part of it before growth; 0 where nothing grew.
        rate: Peak of the learning rate.
        seeds: Number of runs.
        accuracy: On the validation set, mean over seeds.
        loss: Likewise (nats).
        spread: Standard deviation of the loss.
        steps_ratio: Steps of the large network from scratch to this loss, by those after growth: median over seeds.
        compute_ratio: The same by all compute.
        beyond: Seeds whose loss the large network did not reach from scratch; it had too little by at least that much.
        gap: Loss less that of the better of the two fixed sizes at this budget: mean over seeds.
        best: Seeds on which it is below both.
        against_grown: Loss less that of the arm `grown` at this budget: mean over seeds.
        against_spread: Standard deviation of that.
    """

    study: str
    arm: str
    compute: float
    share: float
    rate: float
    seeds: int
    accuracy: float
    loss: float
    spread: float
    steps_ratio: float = math.nan
    compute_ratio: float = math.nan
    beyond: int = 0
    gap: float = math.nan
    best: int = 0
    against_grown: float = math.nan
    against_spread: float = math.nan


class Curves:
    """The runs of a study, by arm, budget and seed."""

    def __init__(self, study: Study, runs: Iterable[Run], seeds: int) -> None:
        """Sort the runs; those of other studies and of trial seeds are left out."""
        self.study = study
        self.runs: dict[str, dict[float, dict[int, Run]]] = {}
        self._lengths = {study.small.name: {*study.budgets}, study.large.name: set[int]()}
        self._lengths[study.large.name] |= {round(one * study.ratio) for one in (*study.budgets, *study.longer)}
        for run in runs:
            arm = self._arm(run)
            if arm is not None and run.seed < seeds:
                budgets = self.runs.setdefault(arm, {})
                budget = self._budget(run.flops, budgets)
                budgets.setdefault(budget, {})[run.seed] = run

    def _arm(self, run: Run) -> str | None:
        if not run.teacher and run.steps not in self._lengths.get(run.network, ()):
            return None  # of another study
        names = {(self.study.small.name, ""): ARMS[0], (self.study.large.name, ""): ARMS[1]}
        names[self.study.large.name, self.study.small.name] = run.arm
        return names.get((run.network, run.teacher))

    def _budget(self, flops: float, known: Iterable[float]) -> float:
        """Return the compute in steps of the large network, or one so near that it is the same."""
        compute = flops / self.study.large.step_flops
        return next((other for other in known if abs(other - compute) < NEAR * compute), compute)

    def at(self, arm: str, compute: float) -> Mapping[int, Run]:
        """Return the runs of an arm at the budget nearest to some compute, by seed; none if none is near."""
        budgets = self.runs.get(arm, {})
        near = min(budgets, key=lambda budget: abs(budget - compute), default=math.inf)
        # Whole steps of either network are not exactly as long.
        return budgets[near] if abs(near - compute) < 0.02 * compute else {}

    def needed(self, seed: int, loss: float) -> float:
        """Return the steps of the large network from scratch to a loss, linear in log(steps).

        Infinite if none of its budgets is enough, nan if the shortest one is more than enough.
        """
        points = sorted((run.steps, run.loss) for budget in self.runs[ARMS[1]].values()
                        for run in budget.values() if run.seed == seed)  # fmt: skip
        for (before, high), (after, low) in itertools.pairwise(points):
            if high >= loss >= low:
                part = (high - loss) / (high - low) if high > low else 0.0
                return before * (after / before) ** part
        return math.inf if points and loss < points[-1][1] else math.nan

    def rows(self) -> Iterator[Row]:
        """Yield a row for each arm and budget."""
        for arm, budgets in self.runs.items():
            for compute in sorted(budgets):
                yield self._row(arm, compute, budgets[compute])

    def _row(self, arm: str, compute: float, runs: Mapping[int, Run]) -> Row:
        first, losses = next(iter(runs.values())), [run.loss for run in runs.values()]
        grown = first.arm != SCRATCH
        share = first.teacher_steps * self.study.ratio / compute if grown else 0.0
        row = Row(self.study.name, arm, compute, share, first.rate, len(runs),
                  statistics.fmean(run.accuracy for run in runs.values()), *_mean_and_spread(losses))  # fmt: skip
        if not grown:
            return row
        needed = {seed: self.needed(seed, run.loss) for seed, run in runs.items()}
        reached = [self._farthest(seed) if math.isinf(steps) else steps for seed, steps in needed.items()]
        needs = math.nan if any(map(math.isnan, reached)) else statistics.median(reached)
        fixed = [self.at(other, compute) for other in ARMS[:2]]
        gaps = [run.loss - min(other[seed].loss for other in fixed)
                for seed, run in runs.items() if all(seed in other for other in fixed)]  # fmt: skip
        base = self.at(GROWN.name, compute)
        against = [run.loss - base[seed].loss for seed, run in runs.items() if arm != GROWN.name and seed in base]
        differs = _mean_and_spread(against)
        return dataclasses.replace(
            row, steps_ratio=needs / first.steps, compute_ratio=needs / compute,
            beyond=sum(map(math.isinf, needed.values())), gap=_mean_and_spread(gaps)[0],
            best=sum(gap < 0 for gap in gaps), against_grown=differs[0], against_spread=differs[1],
        )  # fmt: skip

    def _farthest(self, seed: int) -> float:
        return max(run.steps for budget in self.runs[ARMS[1]].values() for run in budget.values() if run.seed == seed)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


# --- tables ---------------------------------------------------------------------------------------------------


def write_summary(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file with a row for each arm and budget."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in values])


def curves_table(rows: Iterable[Row]) -> str:
    """Write the three curves of every study, a budget a line."""
    budgets: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        for (study, compute), arms in budgets.items():
            if study == row.study and abs(compute - row.compute) < 0.02 * compute and row.arm in ARMS:
                arms[row.arm] = row
                break
        else:
            if row.arm in ARMS:
                budgets[row.study, round(row.compute)] = {row.arm: row}
    lines = [
        f"| study | compute | seeds | {' | '.join(ARMS)} | steps x | compute x | against the better one |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (study, compute), arms in budgets.items():
        if GROWN.name not in arms:
            continue
        grown = arms[GROWN.name]
        cells = [study, f"{compute:,}", str(grown.seeds), *(_loss(arms.get(arm)) for arm in ARMS)]
        cells += [_ratio(grown.steps_ratio, grown), _ratio(grown.compute_ratio, grown)]
        cells.append(_gap(grown))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def variants_table(rows: Sequence[Row]) -> str:
    """Write the variants, an arm a line."""
    lines = [
        "| study | arm | compute | share before | rate | loss | less that of `grown` | steps x | compute x "
        "| against the better one |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.arm in ARMS:
            continue
        cells = [row.study, row.arm, f"{round(row.compute):,}", f"{row.share:.0%}", f"{row.rate:.2g}", _loss(row),
                 f"{row.against_grown:+.3f} ± {row.against_spread:.3f}",
                 _ratio(row.steps_ratio, row), _ratio(row.compute_ratio, row), _gap(row)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _loss(row: Row | None) -> str:
    return f"{row.loss:.3f} ± {row.spread:.3f}" if row else "-"


def _gap(row: Row) -> str:
    return "-" if math.isnan(row.gap) else f"{row.gap:+.3f}, below on {row.best} of {row.seeds}"


def _ratio(value: float, row: Row) -> str:
    if math.isnan(value):
        return "-"
    return f"{'> ' if 2 * row.beyond > row.seeds else ''}{value:.2f}"


# --- figures --------------------------------------------------------------------------------------------------


def draw(path: Path, studies: Sequence[Curves]) -> None:
    """Draw the three curves of some studies: the mean over seeds, and a band of a standard deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "net2net"  # the same file each time
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(1, len(studies), figsize=(1.5 + 3.9 * len(studies), 3.4), layout="constrained")
    for curves, ax in zip(studies, np.atleast_1d(axes), strict=True):
        _plot(ax, curves)
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(canvas)


def _plot(ax: Axes, curves: Curves) -> None:
    for arm, color in zip(ARMS, COLORS, strict=True):
        budgets = curves.runs.get(arm, {})
        x = sorted(budgets)
        points = [_mean_and_spread([run.loss for run in budgets[compute].values()]) for compute in x]
        mean, spread = np.array(points).reshape(-1, 2).T
        ax.plot(x, mean, "o-", color=color, label=arm, markersize=4, linewidth=1.4)
        ax.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    ax.set_xscale("log")
    ax.set_title(
        f"{curves.study.name}: {curves.study.small.name} to {curves.study.large.name.split(' ', 1)[1]}", size=9
    )
    ax.set_xlabel("all compute, in steps of the large network", size=8)
    ax.set_ylabel("validation loss (nats)", size=8)
    ax.tick_params(labelsize=8, which="both")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)


# --- all of it ------------------------------------------------------------------------------------------------


def summarize_folder(folder: Path, all_studies: Sequence[Study], seeds: int) -> str:
    """Summarize and draw the runs in a folder, and return the tables.

    Args:
        folder: Has `runs.csv`, and gets the rest.
        all_studies: Those of which there may be runs.
        seeds: Those from there on were for choosing rates.
    """
    runs = read_runs(folder / "runs.csv")
    studies = [Curves(study, runs, seeds) for study in all_studies]
    studies = [curves for curves in studies if GROWN.name in curves.runs and ARMS[1] in curves.runs]
    rows = [row for curves in studies for row in curves.rows()]
    write_summary(folder / "summary.csv", rows)
    for curves in studies:
        draw(folder / f"{curves.study.file}.svg", [curves])
    return f"{curves_table(rows)}\n{variants_table(rows)}"
