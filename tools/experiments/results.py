"""What is kept of the experiments: curves, a summary of them, and figures."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.definitions import EXPERIMENTS, NET2NET, PAIRS, RANDOM_INIT, RANDOM_PAD, TEACHER, WIDER, at
from experiments.training import Curve, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# --- curves -------------------------------------------------------------------------------------------


def write_curves(path: Path, curves: Iterable[Curve]) -> None:
    """Write one row for each evaluation of each network."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [field.name for field in dataclasses.fields(Curve) if field.name != "points"]
        writer.writerow([*names, *(field.name for field in dataclasses.fields(Point))])
        for curve in curves:
            head = [getattr(curve, name) for name in names]
            for point in curve.points:
                writer.writerow([*head, point.step, *(f"{value:.4g}" for value in dataclasses.astuple(point)[1:])])


def read_curves(path: Path) -> list[Curve]:
    """Read what `write_curves` has written."""
    curves: dict[tuple[str, ...], Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["experiment"], row["shape"], row["arm"], row["seed"])
            numbers = {name: int(row[name]) for name in ("seed", "parameters", "step_flops", "distinct_units")}
            curve = curves.setdefault(key, Curve(*key[:3], **numbers, points=[]))
            values = (float(row[field.name]) for field in dataclasses.fields(Point)[1:])
            curve.points.append(Point(int(row["step"]), *values))
    return list(curves.values())


# --- summary ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm of one experiment over all seeds.

    Attributes:
        experiment: Its name.
        shape: What the networks that are compared have in common.
        arm: How this one came by its weights, or was trained.
        seeds: Number of runs.
        parameters: Of the network.
        steps: Minibatches that it was trained for.
        accuracy: On the validation set after the last step, mean over seeds.
        accuracy_spread: Its standard deviation.
        loss: Cross entropy on the validation set after the last step (nats), mean over seeds.
        loss_spread: Its standard deviation.
        distinct_units: Median number of hidden units that respond differently; -1 where it was not counted.
        to_teacher: Median of the steps to where the teacher ended; infinite if most seeds never came there.
        to_random: Median of the steps to where random initialization ended.
        random_to_this: Median of the steps of random initialization to where this arm ended.
        random_by_this_to_teacher: Steps of random initialization to where the teacher ended, by those of this arm.
        pad_by_this_to_teacher: The same for random padding.
        random_by_this_to_random: Steps of random initialization to where it ended itself, by those of this arm.
        pad_by_this_to_pad: Steps of random padding to where it ended itself, by those of this arm.
        compute_to_random: Floating-point operations of the teacher's training and of this arm to where random
            initialization ended, by those that the latter took.
    """

    experiment: str
    shape: str
    arm: str
    seeds: int
    parameters: int
    steps: int
    accuracy: float
    accuracy_spread: float
    loss: float
    loss_spread: float
    distinct_units: float
    to_teacher: float
    to_random: float
    random_to_this: float
    random_by_this_to_teacher: float
    pad_by_this_to_teacher: float
    random_by_this_to_random: float
    pad_by_this_to_pad: float
    compute_to_random: float


def score(curve: Curve, point: Point) -> float:
    """Return what counts: the accuracy of classifiers, the negative loss of language models."""
    return -point.loss if curve.experiment == "transformer" else point.accuracy


def steps_to(curve: Curve, target: float) -> float:
    """Return the steps after which a network first scored `target`; infinite if it never did."""
    return next((point.step for point in curve.points if score(curve, point) >= target), math.inf)


def summarize(curves: Sequence[Curve]) -> list[Row]:
    """Summarize the curves of one experiment, an arm a row.

    Every seed is measured by the ends of the teacher and of the random initialization of the same seed. What is not
    there to compare with gives nan.
    """
    arms: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        arms.setdefault((curve.shape, curve.arm), []).append(curve)

    def steps(runs: Sequence[Curve] | None, goals: Sequence[Curve] | None) -> float:
        """Return the median of the steps to where others ended."""
        if not runs or not goals:
            return math.nan
        ends = {goal.seed: score(goal, goal.points[-1]) for goal in goals}
        return statistics.median(steps_to(run, ends[run.seed]) for run in runs)

    teachers = arms.get(("", TEACHER))
    rows = []
    for (shape, arm), runs in arms.items():
        random_init, pad = arms.get((shape, RANDOM_INIT)), arms.get((shape, RANDOM_PAD))
        to_teacher, to_random = steps(runs, teachers), steps(runs, random_init)
        baseline = steps(random_init, random_init)
        compute = math.nan
        if teachers and random_init:
            before = 0 if arm == RANDOM_INIT else teachers[0].step_flops * teachers[0].points[-1].step
            compute = _ratio(before + runs[0].step_flops * to_random, random_init[0].step_flops * baseline)
        ends = [run.points[-1] for run in runs]
        row = Row(
            runs[0].experiment,
            shape,
            arm,
            len(runs),
            runs[0].parameters,
            ends[0].step,
            *_mean_and_spread([end.accuracy for end in ends]),
            *_mean_and_spread([end.loss for end in ends]),
            statistics.median(run.distinct_units for run in runs),
            to_teacher,
            to_random,
            steps(random_init, runs),
            _ratio(steps(random_init, teachers), to_teacher),
            _ratio(steps(pad, teachers), to_teacher),
            _ratio(baseline, to_random),
            _ratio(steps(pad, pad), steps(runs, pad)),
            compute,
        )
        rows.append(row)
    return rows


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _ratio(steps: float, by: float) -> float:
    """Divide; who never came there has no ratio, and to have been there from the beginning gives an infinite one."""
    if not math.isfinite(steps) or not math.isfinite(by):
        return math.nan
    return steps / by if by else math.inf


def write_summary(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file with a row for each arm."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in values])


def markdown(rows: Iterable[Row]) -> str:
    """Write the summary as a table; the columns are explained beside it in the README."""
    lines = [
        "| experiment | network | parameters | steps | accuracy | loss | to teacher's end | to random init.'s end "
        "| random init. to this end | random init. / this | random pad / this | compute |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            row.experiment,
            f"{row.arm}, {row.shape}" if row.shape else row.arm,
            f"{row.parameters:,}",
            f"{row.steps:,}",
            f"{row.accuracy:.1%} ± {100 * row.accuracy_spread:.1f}",
            f"{row.loss:.3f} ± {row.loss_spread:.3f}",
            *(_cell(value, "never") for value in (row.to_teacher, row.to_random, row.random_to_this)),
            *(_cell(value, "at once") for value in (row.random_by_this_to_random, row.pad_by_this_to_pad)),
            _cell(row.compute_to_random, "-"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, infinite: str) -> str:
    if math.isinf(value):
        return infinite
    return "-" if math.isnan(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


# --- figures ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot of a figure.

    Attributes:
        title: What stands above it.
        y: A field of `Point`.
        shows: Which curves.
        compute: Whether floating-point operations, the teacher's included, are the horizontal axis instead of steps.
        gain: Whether `y` is shown less what it was at the beginning, where teachers of different seeds differ much.
    """

    title: str
    y: str
    shows: Callable[[Curve], bool] = lambda _: True
    compute: bool = False
    gain: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: the experiment whose curves it shows, and its plots."""

    experiment: str
    panels: Sequence[Panel]


def _accuracies(shows: Callable[[Curve], bool]) -> Sequence[Panel]:
    return Panel("(a) training", "train_accuracy", shows), Panel("(b) validation", "accuracy", shows)


def _of_shapes(*shapes: str) -> Callable[[Curve], bool]:
    return lambda curve: curve.shape in ("", *shapes)


_PAPERS_ARMS = (TEACHER, at(NET2NET, 10), at(NET2NET, 1), RANDOM_PAD, RANDOM_INIT)
FIGURES: Mapping[str, Figure] = {
    "figure4": Figure("figure4", _accuracies(lambda curve: curve.arm in _PAPERS_ARMS)),
    "figure5": Figure("figures5and6", _accuracies(_of_shapes(PAIRS[2]))),
    "figure6": Figure("figures5and6", _accuracies(_of_shapes(PAIRS[4], WIDER))),
    "appendix_a": Figure("figure4", _accuracies(lambda curve: curve.arm.startswith(NET2NET))),
    "symmetry": Figure(
        "symmetry",
        (
            Panel("Adam", "loss", lambda curve: "adam" in curve.arm, gain=True),
            Panel("SGD with momentum", "loss", lambda curve: "sgd" in curve.arm, gain=True),
        ),
    ),
    "transformer": Figure(
        "transformer",
        (
            Panel("heads and hidden units x 1.5", "loss", _of_shapes("wider"), compute=True),
            Panel("blocks x 2", "loss", _of_shapes("deeper"), compute=True),
        ),
    ),
}


def draw(path: Path, figure: Figure, curves: Sequence[Curve]) -> None:
    """Draw one figure: the mean over seeds, and a band of a standard deviation on either side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(1, len(figure.panels), figsize=(10, 3.8), layout="constrained", sharey=True)
    for panel, ax in zip(figure.panels, axes, strict=True):
        arms: dict[tuple[str, str], list[Curve]] = {}
        for curve in filter(panel.shows, curves):
            arms.setdefault((curve.shape, curve.arm), []).append(curve)
        for runs in arms.values():
            values = np.array([[getattr(point, panel.y) for point in run.points] for run in runs])
            steps = np.array([point.step for point in runs[0].points])
            before = _teacher_flops(runs[0], curves)
            x = (before + steps * runs[0].step_flops) / 1e12 if panel.compute else steps
            _plot(ax, runs[0], x, values - values[:, :1] if panel.gain else values)
        ax.set(title=panel.title, xlabel="TFLOP, the teacher's included" if panel.compute else "minibatches")
        what = "accuracy" if panel.y != "loss" else "validation loss"
        ax.set_ylabel(f"{what}, less the teacher's" if panel.gain else what)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
        if panel.y == "loss" and not panel.gain:
            # The first steps of a random initialization would leave no room for the others.
            ends = [curve.points[-1].loss for curve in curves]
            ax.set_ylim(0.95 * min(ends), 1.3 * max(ends))
    canvas.savefig(path, dpi=90)
    plt.close(canvas)


def _teacher_flops(curve: Curve, curves: Iterable[Curve]) -> int:
    """Return what the teacher's training cost that a network started from."""
    if curve.arm in (TEACHER, RANDOM_INIT):
        return 0
    teacher = next(other for other in curves if other.arm == TEACHER)
    return teacher.step_flops * teacher.points[-1].step


def _plot(ax: Axes, arm: Curve, x: np.ndarray, values: np.ndarray) -> None:
    """Plot one arm: values ``[seeds, points]``."""
    mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(x))
    style = "--" if arm.arm == TEACHER or "dropout" in arm.arm else "-"
    (line,) = ax.plot(x, mean, style, label=f"{arm.arm}, {arm.shape}" if arm.shape else arm.arm, linewidth=1.2)
    ax.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)


# --- all of it ----------------------------------------------------------------------------------------


def summarize_folder(folder: Path) -> str:
    """Summarize and draw the curves in a folder, and return the summary as a table."""
    curves = {name: read_curves(folder / f"{name}.csv") for name in EXPERIMENTS if (folder / f"{name}.csv").exists()}
    rows = [row for name in curves for row in summarize(curves[name])]
    write_summary(folder / "summary.csv", rows)
    for name, figure in FIGURES.items():
        if figure.experiment in curves:
            draw(folder / f"{name}.png", figure, curves[figure.experiment])
    return markdown(rows)
