"""A chain: networks in ascending size, each grown from the last one and trained by the user's own command.

Each stage has a folder, with a note of everything that it was made from. So a completed stage is not done again, unless
one of these things has changed: then it is *stale*. A runner that was killed goes on at the first stage that is not
complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.model.model import load
from onnx_net2net.search import folders
from onnx_net2net.search.cost import Cost, cost_of
from onnx_net2net.search.engines import OnMetric
from onnx_net2net.search.features import write_features
from onnx_net2net.search.folders import digest, digest_of, read_json, write_json
from onnx_net2net.search.growing import (
    GrownNetwork,
    SavedNetwork,
    begin,
    fill_network,
    grow_network,
    network_json,
    network_of,
    trained,
)
from onnx_net2net.search.stages import Chain, Stage
from onnx_net2net.search.training import Outcome, Stop, Template, completed, train

_SAME = 0.01
"""A stage starts at the metric that its teacher ended with, to this part of it."""

_RECORD, _MADE, _TRAIN = "record.json", "made.json", "train"
_PARTS = {"teacher": "its teacher", "stage": "its description", "files": "its files", "training": "its training"}
"""What a stage is made from, as messages call it."""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        name: The name of the stage.
        kind: The `kind` of its `Stage`.
        cost: The cost of the network.
        exact: Whether it computed the same as its teacher before its training.
        notes: Remarks for people on how it was made.
        outcome: The result of its training; None if it was not trained here.
        expected: The metric that its teacher ended with.
        network: The network after its training.
    """

    name: str
    kind: str
    cost: Cost
    exact: bool
    notes: tuple[str, ...]
    outcome: Outcome | None
    expected: float | None
    network: SavedNetwork

    @property
    def compute(self) -> float:
        """Steps times multiplications."""
        return self.outcome.steps * self.cost.macs if self.outcome else 0.0


@dataclass(frozen=True)
class Planned:
    """What is to be done with a stage.

    Attributes:
        stage: The stage.
        reason: Why it has to be done; empty if it is complete.
    """

    stage: Stage
    reason: str


def plan_chain(chain: Chain, since: str | None = None) -> list[Planned]:
    """Say which stages have to be done, and why; nothing is written.

    Args:
        chain: The chain.
        since: The stage from which on all are done again.

    Raises:
        BadInputError: If there is no such stage.
    """
    if since is not None and since not in [stage.name for stage in chain.stages]:
        raise BadInputError(f"there is no stage {since!r}; there are {', '.join(s.name for s in chain.stages)}")
    runner = _Runner(chain, since, lambda *_: None)
    return list(runner.plan())


def run_chain(chain: Chain, since: str | None = None, report: OnMetric = lambda *_: None) -> list[StageResult]:
    """Do what is to be done of a chain, and return what became of all stages.

    Args:
        chain: The chain.
        since: The stage from which on all are done again.
        report: Told how the trainings go.

    Raises:
        BadInputError: If files cannot be used, or another runner works in the folder.
        NotEquivalentError: If a student computes something else, or a training does not start where it should.
        RefusedError: If a student cannot be made exactly.
        TrainingError: If a training fails.
    """
    plan_chain(chain, since)
    with folders.alone_in(chain.work):
        return _Runner(chain, since, report).run()


class _Runner:
    """Goes through the stages, each made of what the one before came to."""

    def __init__(self, chain: Chain, since: str | None, report: OnMetric) -> None:
        self._chain, self._since, self._report = chain, since, report

    def plan(self) -> Iterator[Planned]:
        """Yield what is to be done; behind a stage that is not complete everything is."""
        before: SavedNetwork | None = None
        again = False
        for number, stage in enumerate(self._chain.stages):
            folder = self._folder(number, stage)
            again |= stage.name == self._since
            reason = "as asked" if again else self._missing(folder, self._key(stage, before))
            if not reason:
                before = self._network(folder)
                yield Planned(stage, "")
                continue
            yield Planned(stage, reason)
            for later in self._chain.stages[number + 1 :]:
                yield Planned(later, f"{stage.name} is done before")
            return

    def run(self) -> list[StageResult]:
        rows: list[StageResult] = []
        again = False
        for number, stage in enumerate(self._chain.stages):
            folder = self._folder(number, stage)
            before = rows[-1] if rows else None
            key = self._key(stage, before.network if before else None)
            again |= stage.name == self._since
            if again or self._missing(folder, key):
                self._do(stage, folder, key, before, again)
            rows.append(self._row(stage, folder, before))
        return rows

    def _folder(self, number: int, stage: Stage) -> Path:
        return self._chain.work / f"{number:02}-{stage.name}"

    def _key(self, stage: Stage, before: SavedNetwork | None) -> dict[str, str]:
        """Return what a stage is made from."""
        chain, template = self._chain, stage.template
        started = [path for path in (chain.model, chain.state, chain.optimizer) if path]
        return {
            "teacher": digest(before.files if before else started),
            "stage": digest_of([stage.steps, stage.exact, stage.kind]),
            "files": digest(path for path in (stage.target, stage.state) if path),
            "training": self._key_of_training(template, stage.stop) if template else "",
        }

    def _key_of_training(self, template: Template, stop: Stop) -> str:
        chain = self._chain
        what = [template.words, asdict(stop), chain.seed, chain.features, chain.distill]
        return digest_of([what, digest(template.files)])

    def _missing(self, folder: Path, key: Mapping[str, str]) -> str:
        """Return why a stage is to be done; empty if it is complete."""
        record = read_json(folder / _RECORD)
        if record is None:
            return "it was not completed" if folder.exists() else "it is new"
        changed = [text for part, text in _PARTS.items() if record["key"].get(part) != key[part]]
        return f"it is stale: {' and '.join(changed)} changed" if changed else ""

    def _do(self, stage: Stage, folder: Path, key: Mapping[str, str], before: StageResult | None, again: bool) -> None:
        """Make and train a stage; what was made for the same key before it was interrupted is kept."""
        made = read_json(folder / _MADE)
        if folder.exists() and (again or made is None or made["key"] != key):
            _set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if read_json(folder / _MADE) is None:
            grown = self._make(stage, folder, before)
            made = {"network": network_json(grown.network), "exact": grown.exact, "notes": list(grown.notes)}
            write_json(folder / _MADE, {"key": key, **made, "cost": asdict(cost_of(load(grown.network.model)))})
        grown = _grown_of(read_json(folder / _MADE))
        network = grown.network
        if stage.template is not None:
            out = folder / _TRAIN
            if completed(out) is None:
                self._train(stage, stage.template, folder, grown, before)
            network = trained(grown.network, out, folder)
        write_json(folder / _RECORD, {"key": key, "network": network_json(network)})

    def _make(self, stage: Stage, folder: Path, before: StageResult | None) -> GrownNetwork:
        chain = self._chain
        if before is None:
            return GrownNetwork(begin(chain.model, chain.state, chain.optimizer, folder), exact=True)
        if stage.kind == "alone":
            return GrownNetwork(_untrained(before, self._folder(len(chain.stages) - 2, chain.stages[-2])), exact=False)
        if stage.target is not None:
            return fill_network(before.network, stage.target, stage.state, folder, stage.exact)
        return grow_network(before.network, stage.steps, folder, stage.exact)

    def _train(
        self, stage: Stage, template: Template, folder: Path, grown: GrownNetwork, before: StageResult | None
    ) -> None:
        network, features = grown.network, ""
        if before is not None and stage.kind == "grown" and template.names("features"):
            path = folder / "features.json"
            write_features(before.network, network, path, self._chain.features, self._chain.distill)
            features = str(path)
        values = {
            "init": network.state, "optimizer": network.optimizer or "", "student": network.model,
            "teacher": before.network.model if before else "", "features": features, "name": stage.name,
            "seed": self._chain.seed, "start": 0,
        }  # fmt: skip
        past = before.outcome if before and stage.exact and stage.kind == "grown" else None

        def watch(step: float, value: float) -> None:
            if past is not None and not step:
                _check_start(stage, value, past)
            self._report(stage.name, step, value)

        train(template, values, folder / _TRAIN, stage.stop, watch)

    def _network(self, folder: Path) -> SavedNetwork:
        return network_of(read_json(folder / _RECORD)["network"])

    def _row(self, stage: Stage, folder: Path, before: StageResult | None) -> StageResult:
        made = read_json(folder / _MADE)
        grown, outcome = _grown_of(made), completed(folder / _TRAIN) if stage.template else None
        expected = before.outcome.last if before and before.outcome and stage.kind == "grown" else None
        cost = Cost(**made["cost"])
        return StageResult(
            stage.name, stage.kind, cost, grown.exact, grown.notes, outcome, expected, self._network(folder)
        )


def _check_start(stage: Stage, value: float, past: Outcome) -> None:
    """Refuse a training that does not start at what its teacher came to, at its last step or at its best."""
    ends = (past.last, stage.stop.best([value for _, value in past.curve]))
    if not any(abs(value - end) <= _SAME * abs(end) + 1e-9 for end in ends):
        raise NotEquivalentError(
            f"{stage.name} starts at {stage.stop.metric} {value:g} and its teacher ended at {past.last:g}, though both "
            "compute the same: the training does not load {init}, or measures on other data"
        )


def _untrained(last: StageResult, folder: Path) -> SavedNetwork:
    """Return the last network as it was before its training, for one that starts from scratch."""
    network = _grown_of(read_json(folder / _MADE)).network
    return SavedNetwork(network.model, network.state, None, last.network.own)


def _set_aside(folder: Path) -> None:
    """Keep what a stage was, once."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)


def _grown_of(value: Mapping[str, Any]) -> GrownNetwork:
    return GrownNetwork(network_of(value["network"]), value["exact"], tuple(value["notes"]))


@dataclass(frozen=True)
class Saving:
    """What a chain saved, compared with training its last network alone.

    Attributes:
        metric: The value that both reached.
        chain: The compute of the chain up to this value, in steps of the last network.
        alone: The compute of the last network alone up to this value; None if it never reached it.
    """

    metric: float
    chain: float
    alone: float | None


def compute_saved(rows: Sequence[StageResult], stop: Stop) -> Saving | None:
    """Compare a chain with its last network alone; None where this was not trained."""
    *chain, last = rows
    if last.kind != "alone" or last.outcome is None or not chain[-1].outcome:
        return None
    step_cost = last.cost.macs
    spent = sum(row.compute for row in chain[:-1]) / step_cost
    goal = stop.best([value for _, value in chain[-1].outcome.curve])
    alone_best = stop.best([value for _, value in last.outcome.curve])
    goal = goal if not stop.is_better(goal, alone_best) else alone_best
    reached = _first(chain[-1].outcome, goal, stop)
    assert reached is not None
    return Saving(goal, spent + reached, _first(last.outcome, goal, stop))


def _first(outcome: Outcome, goal: float, stop: Stop) -> float | None:
    """Return the first step at which a training is at least as good as a value."""
    return next((step for step, value in outcome.curve if not stop.is_better(goal, value)), None)
