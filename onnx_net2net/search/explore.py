"""Exploring: many candidates are grown from one teacher and trained a little; the better ones are trained more.

Candidates come in batches. A batch is first made and measured. Candidates that cannot be exact or break a constraint
are dropped before any training. The others train to the first rung. Of all candidates that ever reached a rung, the
best fraction goes on to the next rung, each with its own weights and optimizer (successive halving). The search depends
only on the seed and on the results, not on which training ended first. So every engine gives the same table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onnx_net2net.errors import RefusedError
from onnx_net2net.model.staging import writing
from onnx_net2net.search import folders
from onnx_net2net.search.cost import Cost
from onnx_net2net.search.engines import OnMetric
from onnx_net2net.search.folders import read_json, write_json
from onnx_net2net.search.growing import SavedNetwork, network_json, network_of, trained
from onnx_net2net.search.search import Search
from onnx_net2net.search.space import Candidate
from onnx_net2net.search.studies import Study
from onnx_net2net.search.training import Outcome, Stop

_MADE = "made.json"

COSTS = ("parameters", "macs", "latency")
"""Costs that may be objectives beside the metric."""


@dataclass
class Trial:
    """A candidate and its results.

    Attributes:
        number: Its number.
        candidate: Its sizes, numbers of copies, and numbers for the training.
        state: "running", "complete", "pruned" or "fail".
        reason: Why it was dropped; empty if it was not.
        cost: The cost of its network; None if it could not be made.
        outcomes: The result of its training at each rung that it reached.
        network: Its network after the last rung.
    """

    number: int
    candidate: Candidate
    state: str = "running"
    reason: str = ""
    cost: Cost | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    network: SavedNetwork | None = None

    @property
    def value(self) -> float | None:
        """The metric at the last rung that it reached."""
        return self.outcomes[-1].last if self.outcomes else None

    @property
    def compute(self) -> float:
        """Steps times multiplications."""
        return self.outcomes[-1].steps * self.cost.macs if self.outcomes and self.cost else 0.0

    @property
    def curve(self) -> list[tuple[float, float]]:
        """The steps and the metric there, over all rungs."""
        whole = dict(point for outcome in self.outcomes for point in outcome.curve)
        return sorted(whole.items())

    @property
    def slope(self) -> float | None:
        """By how much the metric changed in a hundred steps of the last rung."""
        last = self.outcomes[-1] if self.outcomes else None
        if last is None or last.steps == last.curve[0][0]:
            return None
        return 100 * (last.last - last.first) / (last.steps - last.curve[0][0])


class Exploration(Search):
    """A search in a folder."""

    def run(self, report: OnMetric = lambda *_: None) -> list[Trial]:
        """Explore, or go on where it was interrupted; return the trials, the best first.

        Raises:
            BadInputError: If files cannot be used, another runner works in the folder, or the study is of another
                search.
            RefusedError: If no candidate could be trained at all.
        """
        options = self._options
        with folders.alone_in(self._work):
            self._begin()
            modes = [options.stop.mode, *("min" for _ in options.objectives)]
            storage = options.storage or f"sqlite:///{(self._work / 'study.db').absolute()}"
            study = Study(storage, "explore", self._space, modes, options.sampler, options.seed, options.batch)
            study.agree(self._settings())
            trials: list[Trial] = []
            for batch in self._batches(study):
                trials += [Trial(number, candidate) for number, candidate in batch]
                self._explore(study, trials, len(batch), report)
        if not any(trial.outcomes for trial in trials) and trials:
            raise RefusedError(f"no candidate was trained; the first one was dropped: {trials[0].reason}")
        return ranked(trials, options.stop)

    def _settings(self) -> dict[str, Any]:
        """Return what must stay as it is when the search goes on; the budget may grow."""
        options = self._options
        return {
            **super()._settings(), "keep": options.keep, "batch": options.batch, "objective": list(options.objectives),
            "sampler": options.sampler, "work": str(self._work.absolute()),
        }  # fmt: skip

    def _batches(self, study: Study) -> Any:
        """Yield the batches of candidates, those that are known first; each is asked for when the last is done."""
        start = 0
        while start < self._options.budget:
            known = [trial for trial in study.trials() if trial.number >= start]
            size = known[0].user_attrs["batch"] if known else min(self._options.batch, self._options.budget - start)
            for _ in range(size - len(known)):
                if study.propose({"batch": size}) is None:
                    break
            batch = [(t.number, t.params) for t in study.trials()[start : start + size]]
            if not batch:
                return
            yield batch
            start += size

    def _explore(self, study: Study, trials: list[Trial], size: int, report: OnMetric) -> None:
        """Make, train and judge a batch, which is the end of all trials so far."""
        batch = trials[-size:]
        for trial in batch:
            self._make(trial)
            if trial.state != "running":
                self._finish(study, trial)
        for rung, steps in enumerate(self._options.rungs):
            alive = [trial for trial in batch if trial.state == "running"]
            self._train(alive, rung, report)
            for trial in alive:
                if trial.value is not None and not self._options.objectives:
                    study.report(trial.number, steps, trial.value)
            is_last = rung + 1 == len(self._options.rungs)
            stays = {t.number for t in alive if is_last} or self._best_at(rung, trials)
            for trial in alive:
                if trial.state == "running" and (is_last or trial.number not in stays):
                    trial.state = "complete" if is_last else "pruned"
                    trial.reason = "" if is_last else f"not among the best at step {steps}"
                if trial.state != "running":
                    self._finish(study, trial)

    def _folder(self, trial: Trial) -> Path:
        return self._work / "trials" / f"{trial.number:04}"

    def _make(self, trial: Trial) -> None:
        """Grow a candidate and measure it; what was made before is taken as it is."""
        folder = self._folder(trial)
        made = read_json(folder / _MADE)
        if made is None:
            made = self._made(trial, folder)
            write_json(folder / _MADE, made)
        if "refused" in made:
            trial.state, trial.reason = "pruned", made["refused"]
            return
        trial.cost, trial.network = Cost(**made["cost"]), network_of(made["network"])
        if excess := self._space.excess(trial.cost, self._base):
            trial.state, trial.reason = "pruned", excess

    def _made(self, trial: Trial, folder: Path) -> dict[str, Any]:
        steps = self._space.steps(trial.candidate)
        default = {"framework": "torch"} if self._teacher.own else {}
        recipe = [{**step, **default} for step in steps]
        found = self._grown(self._teacher, steps, folder)
        with writing(folder):
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if isinstance(found, str):
            return {"refused": found}
        grown, cost = found
        return {"network": network_json(grown.network), "cost": asdict(cost), "notes": list(grown.notes)}

    def _train(self, alive: Sequence[Trial], rung: int, report: OnMetric) -> None:
        """Train candidates to a rung, each from where it is."""
        jobs = [
            self._job("trial", trial.number, trial.candidate, trial.network, rung,
                      self._folder(trial) / f"rung-{rung + 1}")
            for trial in alive
        ]  # fmt: skip
        for trial, job, outcome in zip(alive, jobs, self._engine.run(jobs, report), strict=True):
            if isinstance(outcome, Outcome):
                trial.outcomes.append(outcome)
                folder = self._folder(trial) / f"after-{rung + 1}"
                trial.network = _settled(trial.network, job.out, folder)
            else:
                trial.state, trial.reason = "fail", str(outcome)

    def _best_at(self, rung: int, trials: Sequence[Trial]) -> set[int]:
        """Return the best part of all trials that reached a rung, and with several objectives those on the front."""
        reached = [trial for trial in trials if len(trial.outcomes) > rung]
        if not reached:
            return set()
        stop = self._options.stop
        values = {trial.number: trial.outcomes[rung].last for trial in reached}
        order = sorted(values, key=lambda number: (stop.signed(values[number]), number))
        best = set(order[: max(1, math.ceil(self._options.keep * len(order)))])
        if self._options.objectives:
            points = {t.number: self._point(t, values[t.number]) for t in reached}
            best |= front(points)
        return best

    def _point(self, trial: Trial, value: float) -> tuple[float, ...]:
        """Return the objectives of a trial, all of them to be small."""
        return (
            self._options.stop.signed(value),
            *(float(getattr(trial.cost, name)) for name in self._options.objectives),
        )

    def _finish(self, study: Study, trial: Trial) -> None:
        """Write into the study what became of a trial."""
        notes: dict[str, Any] = {"reason": trial.reason, "folder": str(self._folder(trial))}
        if trial.cost:
            notes |= asdict(trial.cost)
        study.note(trial.number, **notes)
        values = None
        if trial.state == "complete":
            assert trial.value is not None
            values = [trial.value, *(float(getattr(trial.cost, name)) for name in self._options.objectives)]
        study.tell(trial.number, trial.state, values)


def _settled(before: SavedNetwork | None, out: Path, folder: Path) -> SavedNetwork:
    """Return a network as a training left it, with its file, which is written once."""
    assert before is not None
    record = read_json(folder / _MADE)
    if record is None:
        folder.mkdir(parents=True, exist_ok=True)
        record = network_json(trained(before, out, folder))
        write_json(folder / _MADE, record)
    return network_of(record)


def front(points: dict[int, tuple[float, ...]]) -> set[int]:
    """Return the numbers of the points on the Pareto front; small is good."""
    return {
        number for number, point in points.items()
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )
    }  # fmt: skip


def ranked(trials: Sequence[Trial], stop: Stop) -> list[Trial]:
    """Return trials in order: the longer they stayed the better, and then by the metric."""

    def place(trial: Trial) -> tuple[int, float, int]:
        return -len(trial.outcomes) if trial.state != "fail" else 1, stop.signed(trial.value), trial.number

    return sorted(trials, key=place)
