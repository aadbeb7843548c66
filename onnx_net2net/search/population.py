"""Training a population whose members differ in architecture, too (after Jaderberg et al., arXiv:1711.09846).

All members train for a while, each at its own size and with its own numbers. Then the weakest take over the weights and
the optimizer of the strongest, and go on with numbers near theirs. Plain population based training needs one
architecture. Here the strong network is first grown, exactly, to the smallest size that both fit into, or one step
further. So a weak member keeps at least its size.

A round depends only on the seed, on its number and on the results before it, so that a runner that was killed can go
on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx_net2net.errors import RefusedError
from onnx_net2net.search import folders
from onnx_net2net.search.cost import Cost
from onnx_net2net.search.engines import OnMetric
from onnx_net2net.search.folders import read_json, write_json
from onnx_net2net.search.growing import SavedNetwork, network_json, network_of, trained
from onnx_net2net.search.search import Search
from onnx_net2net.search.space import Candidate
from onnx_net2net.search.training import Outcome, Stop

_ROUND = "round.json"

_REPLACED = 0.25
"""The part of the members that take over from as many others."""

_TRIES = 20
"""So many candidates are drawn for a member before the one that is there stays."""


@dataclass
class Member:
    """A member at the end of a round.

    Attributes:
        number: Its number.
        candidate: Its architecture and its numbers in this round.
        network: Its network.
        cost: The cost of its network.
        value: The metric at the end; None if its training failed.
        compute: Steps times multiplications, summed over all rounds.
        source: The member whose weights it took over before the round; None if it kept its own.
        note: What went wrong; empty if nothing did.
        curve: Pairs of a step of the round and the metric at this step.
    """

    number: int
    candidate: Candidate
    network: SavedNetwork
    cost: Cost
    value: float | None = None
    compute: float = 0.0
    source: int | None = None
    note: str = ""
    curve: list[tuple[float, float]] = field(default_factory=list)


class Population(Search):
    """A population in a folder."""

    def run(self, report: OnMetric = lambda *_: None) -> list[list[Member]]:
        """Train, or go on where it was interrupted; return the members at the end of each round.

        Raises:
            BadInputError: If files cannot be used, or another runner works in the folder, or it is of another search.
            RefusedError: If no member could be made or trained.
        """
        with folders.alone_in(self._work):
            folders.agree(self._work / "settings.json", {**self._settings(), "population": self._options.members})
            self._begin()
            rounds: list[list[Member]] = []
            for number in range(len(self._options.rungs)):
                path = self._work / f"round-{number + 1}" / _ROUND
                if read_json(path) is None:
                    members = self._round(number, rounds[-1] if rounds else None, report)
                    write_json(path, [to_json(member) for member in members])
                rounds.append([_of_json(value) for value in read_json(path)])
            return rounds

    def _round(self, number: int, before: Sequence[Member] | None, report: OnMetric) -> list[Member]:
        folder = self._work / f"round-{number + 1}"
        draw = random.Random(self._options.seed * 1_000_003 + number)
        members = list(self._first(folder, draw) if before is None else self._successors(before, folder, draw))
        if not members:
            raise RefusedError("no member could be grown within the limits")
        self._train(members, number, folder, report)
        if all(member.value is None for member in members):
            raise RefusedError(f"all members failed in round {number + 1}; the first: {members[0].note}")
        return members

    def _first(self, folder: Path, draw: random.Random) -> Iterator[Member]:
        """Yield the members of the first round, each grown from the teacher."""
        for number in range(self._options.members):
            for _ in range(_TRIES):
                candidate = self._space.drawn(draw)
                made = self._member(number, self._teacher, candidate, None, folder)
                if isinstance(made, Member):
                    yield made
                    break

    def _successors(self, before: Sequence[Member], folder: Path, draw: random.Random) -> Iterator[Member]:
        """Yield the members of the next round: most as they are, the weakest with what the strongest have learnt."""
        order = sorted(before, key=self._place)
        count = max(1, math.floor(_REPLACED * len(order))) if len(order) > 1 else 0
        strong = [member for member in order[:count] if member.value is not None]
        weak = {member.number for member in order[len(order) - count :]} | {m.number for m in before if m.value is None}
        for member in before:
            if member.number not in weak or not strong:
                yield replace(member, source=None, note="", curve=[])
                continue
            source = draw.choice(strong)
            yield self._successor(member, source, folder, draw)

    def _successor(self, member: Member, source: Member, folder: Path, draw: random.Random) -> Member:
        """Return a member with the weights and the optimizer of another one, at a size that both fit into."""
        joined = self._space.joined(member.candidate, source.candidate)
        note = ""
        for candidate in (self._space.varied(joined, draw), self._space.numbered(joined, draw),
                          self._space.numbered(dict(source.candidate), draw)):  # fmt: skip
            made = self._member(member.number, source.network, candidate, source.candidate, folder)
            if isinstance(made, Member):
                return replace(made, source=source.number, compute=member.compute, note=note)
            note = made
        return replace(member, source=None, note=note, curve=[])

    def _member(
        self, number: int, network: SavedNetwork, candidate: Candidate, since: Candidate | None, folder: Path
    ) -> Member | str:
        """Return a member that is grown from a network, or why there is none."""
        found = self._grown(network, self._space.steps(candidate, since), folder / f"member-{number}")
        if isinstance(found, str):
            return found
        grown, cost = found
        return self._space.excess(cost, self._base) or Member(number, candidate, grown.network, cost)

    def _train(self, members: Sequence[Member], number: int, folder: Path, report: OnMetric) -> None:
        """Train all members for a round."""
        steps = (0, *self._options.rungs)
        jobs = [
            self._job("member", member.number, member.candidate, member.network, number,
                      folder / f"member-{member.number}" / "train")
            for member in members
        ]  # fmt: skip
        for member, job, outcome in zip(members, jobs, self._engine.run(jobs, report), strict=True):
            if not isinstance(outcome, Outcome):
                member.value, member.note = None, str(outcome)
                continue
            member.value, member.curve = outcome.last, outcome.curve
            member.compute += (steps[number + 1] - steps[number]) * member.cost.macs
            member.network = trained(member.network, job.out, job.out.parent)

    def _place(self, member: Member) -> tuple[float, int]:
        return self._options.stop.signed(member.value), member.number


def best_of(members: Sequence[Member], stop: Stop) -> Member:
    """Return the best member of a round; at least one was trained."""
    values = {member.number: member.value for member in members if member.value is not None}
    best = stop.best(list(values.values()))
    return next(member for member in members if member.value == best)


def to_json(member: Member) -> dict[str, Any]:
    """Return a member as JSON has it."""
    return {**vars(member), "network": network_json(member.network), "cost": asdict(member.cost)}


def _of_json(value: dict[str, Any]) -> Member:
    curve = [(step, figure) for step, figure in value["curve"]]
    return Member(**{**value, "network": network_of(value["network"]), "cost": Cost(**value["cost"]), "curve": curve})
