"""What searches have in common: networks are grown from others, measured, and trained side by side up to rungs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx_net2net.errors import Net2NetError, WriteError, one_line
from onnx_net2net.model.model import load
from onnx_net2net.search.cost import Cost, cost_of
from onnx_net2net.search.engines import Engine, Job
from onnx_net2net.search.folders import digest, digest_of
from onnx_net2net.search.growing import GrownNetwork, SavedNetwork, Step, begin, grow_network
from onnx_net2net.search.space import Candidate, Space
from onnx_net2net.search.training import Stop, Template


@dataclass(frozen=True)
class Options:
    """How a teacher is explored, or a population trained.

    Attributes:
        template: The training command.
        stop: The metric, and when a training counts as hung.
        rungs: The steps at which networks are compared, in ascending order.
        keep: The part of an exploration that goes on to the next rung.
        budget: How many candidates it has.
        batch: How many are made before results of the first are known.
        objectives: Which costs matter beside the metric.
        sampler: How candidates are proposed, one of `studies.SAMPLERS`.
        seed: Of every random choice.
        storage: Where the study is kept; by default in the folder of the search.
        members: How many a population has.
    """

    template: Template
    stop: Stop
    rungs: tuple[int, ...]
    keep: float = 1 / 3
    budget: int = 16
    batch: int = 8
    objectives: tuple[str, ...] = ()
    sampler: str = "auto"
    seed: int = 0
    storage: str | None = None
    members: int = 0


class Search:
    """A search in a folder."""

    def __init__(self, teacher: SavedNetwork, space: Space, options: Options, engine: Engine, work: Path) -> None:
        """Describe it; nothing is written yet.

        Args:
            teacher: The trained network that all others are grown from.
            space: What varies.
            options: How it is searched.
            engine: Where the trainings run.
            work: The folder, which one runner has for itself.
        """
        self._given, self._space, self._options, self._engine, self._work = teacher, space, options, engine, work

    @property
    def _is_timed(self) -> bool:
        return self._space.is_timed or "latency" in self._options.objectives

    def _settings(self) -> dict[str, Any]:
        """Return what must stay as it is when the search goes on."""
        options = self._options
        training = [options.template.words, digest(options.template.files), asdict(options.stop)]
        return {
            "teacher": digest(self._given.files), "space": digest_of(asdict(self._space)),
            "training command": digest_of(training), "rungs": list(options.rungs), "seed": options.seed,
        }  # fmt: skip

    def _begin(self) -> None:
        """Make the teacher ready for growth, and measure it."""
        state = self._given.state if self._given.own else None
        self._teacher = begin(self._given.model, state, self._given.optimizer, self._work)
        self._base = cost_of(load(self._teacher.model), self._is_timed)

    def _grown(self, network: SavedNetwork, steps: Sequence[Step], folder: Path) -> tuple[GrownNetwork, Cost] | str:
        """Return the grown network and its cost, or the reason why it cannot be grown."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            grown = grow_network(network, steps, folder)
        except WriteError:
            raise  # this is not about the network
        except Net2NetError as error:
            return one_line(error)
        return grown, cost_of(load(grown.network.model), self._is_timed)

    def _job(
        self, kind: str, number: int, candidate: Candidate, network: SavedNetwork | None, rung: int, out: Path
    ) -> Job:
        """Return the training of a network from where it is to a rung."""
        assert network is not None
        rungs = (0, *self._options.rungs)
        values = {
            **{key: candidate[key] for key in self._space.numbers},
            "init": network.state, "optimizer": network.optimizer or "", "student": network.model,
            "teacher": self._teacher.model, "name": f"{kind}-{number}", "seed": self._options.seed * 10_007 + number,
            "start": rungs[rung],
        }  # fmt: skip
        stop = replace(self._options.stop, steps=rungs[rung + 1])
        return Job(f"{kind} {number}", self._options.template, values, out, stop)
