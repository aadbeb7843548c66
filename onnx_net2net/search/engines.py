"""Where trainings run: in a pool of this machine, or on a cluster by Ray Tune."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from onnx_net2net.errors import WriteError, optional
from onnx_net2net.search.training import (
    MetricCallback,
    Outcome,
    Stop,
    Template,
    TrainingError,
    completed,
    failure_of,
    train,
)

ENGINES = ("local", "ray")

_DEATHS = 3
"""How often a training may lose its worker before it counts as failed."""


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        name: What it is called.
        template: The command.
        values: What its places stand for.
        out: The folder that it leaves.
        stop: When it ends.
    """

    name: str
    template: Template
    values: dict[str, Any]
    out: Path
    stop: Stop

    def run(self, watch: MetricCallback | None = None, halt: threading.Event | None = None) -> Outcome | TrainingError:
        """Do it, or return what was done before; a training that fails is a result, too."""
        before = completed(self.out) or failure_of(self.out)
        if before is not None:
            return before
        try:
            return train(self.template, self.values, self.out, self.stop, watch, halt)
        except TrainingError as error:
            return error


OnMetric = Callable[[str, float, float], None]
"""Called with the name of a job, a step and the metric there."""


class Engine(Protocol):
    """Runs trainings side by side."""

    def run(self, jobs: Sequence[Job], report: OnMetric) -> list[Outcome | TrainingError]:
        """Return what each job came to, in their order."""


@dataclass(frozen=True)
class Local:
    """A pool of this machine.

    Attributes:
        workers: How many trainings run at once.
    """

    workers: int

    def run(self, jobs: Sequence[Job], report: OnMetric) -> list[Outcome | TrainingError]:
        """Run the jobs; what interrupts this process ends them."""
        halt = threading.Event()

        def do(job: Job) -> Outcome | TrainingError:
            return job.run(lambda step, value: report(job.name, step, value), halt)

        with ThreadPoolExecutor(self.workers) as pool:
            try:
                return list(pool.map(do, jobs))
            except BaseException:
                halt.set()
                pool.shutdown(cancel_futures=True)
                raise


@dataclass(frozen=True)
class Cluster:
    """Ray Tune: on the cluster of RAY_ADDRESS, or on a Ray that is started here.

    Attributes:
        workers: How many trainings run at once.
        folder: Where Ray Tune keeps its notes. It and the folder of the search must be there on all machines.
    """

    workers: int
    folder: Path

    def run(self, jobs: Sequence[Job], report: OnMetric) -> list[Outcome | TrainingError]:
        """Run the jobs; one whose worker dies is done again."""
        ray, tune = _ray()
        found: list[Outcome | TrainingError | None] = [completed(job.out) or failure_of(job.out) for job in jobs]
        left = [number for number, outcome in enumerate(found) if outcome is None]
        if not left:
            return [outcome for outcome in found if outcome is not None]
        _connect(ray, self.workers)
        tuner = tune.Tuner(
            tune.with_parameters(_trainable, jobs=list(jobs)),
            param_space={"number": tune.grid_search(left)},
            tune_config=tune.TuneConfig(max_concurrent_trials=self.workers),
            run_config=tune.RunConfig(
                name="trainings", storage_path=str(self.folder), verbose=0,
                failure_config=tune.FailureConfig(max_failures=_DEATHS),
            ),
        )  # fmt: skip
        results = tuner.fit()
        for number, result in zip(left, results, strict=True):
            found[number] = _result(result)
            outcome = found[number]
            for step, value in outcome.curve if isinstance(outcome, Outcome) else ():
                report(jobs[number].name, step, value)
        return [outcome for outcome in found if outcome is not None]


def _trainable(config: dict[str, Any], jobs: Sequence[Job]) -> dict[str, str]:
    """Run a job in a worker of Ray; what it came to is text, as results have to be."""
    try:
        outcome = jobs[config["number"]].run()
    except WriteError as error:
        return {"not written": str(error)}
    if isinstance(outcome, TrainingError):
        return {"error": str(outcome), "cause": outcome.cause}
    return {"outcome": json.dumps(asdict(outcome))}


def _result(result: Any) -> Outcome | TrainingError:
    found = result.metrics or {}
    if "not written" in found:
        raise WriteError(found["not written"])
    if "outcome" in found:
        return Outcome.of(json.loads(found["outcome"]))
    if "error" in found:
        return TrainingError(found["cause"], found["error"])
    return TrainingError("crash", f"its worker died {_DEATHS + 1} times")


def _connect(ray: Any, workers: int) -> None:
    """Connect to Ray; one that is started here, which takes a while, serves all further trainings of this process."""
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        size = {} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **size)


def _ray() -> tuple[Any, Any]:
    """Import Ray, which neither sends statistics nor writes a token unless the environment says so."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled"),
                        ("RAY_AIR_NEW_OUTPUT", "0"), ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")):  # fmt: skip
        os.environ.setdefault(name, value)
    tune = optional("ray.tune", "--engine ray needs Ray Tune: pip install 'onnx-net2net[ray]'")
    return importlib.import_module("ray"), tune


def engine_of(name: str, workers: int, work: Path) -> Engine:
    """Return an engine of `ENGINES`."""
    return Local(workers) if name == "local" else Cluster(workers, work.absolute() / "ray")
