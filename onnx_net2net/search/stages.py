"""The description of a chain, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx_net2net.errors import BadInputError
from onnx_net2net.search.folders import read_yaml, take
from onnx_net2net.search.growing import Step, check_steps
from onnx_net2net.search.training import Stop, Template

_NUMBER = (int, float)


@dataclass(frozen=True)
class Stage:
    """One network of a chain.

    Attributes:
        name: The name of the stage.
        steps: The steps that grow it from the last network.
        target: The network that is filled from the last one instead.
        state: The state dict of the target.
        exact: Whether it must compute the same as the last network.
        template: The training command; None if it is not trained.
        stop: When its training ends.
        kind: "start", "grown", or "alone" for the last network trained from scratch.
    """

    name: str
    template: Template | None
    stop: Stop
    steps: tuple[Step, ...] = ()
    target: Path | None = None
    state: Path | None = None
    exact: bool = True
    kind: Literal["start", "grown", "alone"] = "grown"


@dataclass(frozen=True)
class Chain:
    """What a file describes.

    Attributes:
        model: The first network.
        state: Its state dict, if there is one.
        optimizer: The state of its optimizer, if there is one.
        work: The folder with the stages.
        stages: The stages, the first network included.
        seed: Given to the trainings.
        features: Names of modules or tensors whose features are compared; None where they are not.
        distill: What else is written beside these, for the training.
    """

    model: Path
    state: Path | None
    optimizer: Path | None
    work: Path
    stages: tuple[Stage, ...]
    seed: int
    features: tuple[str, ...] = ("*",)
    distill: Mapping[str, Any] = field(default_factory=dict)


def read_chain(path: Path) -> Chain:
    """Read a chain from a YAML file; files that it names are relative to it.

    Raises:
        BadInputError: If something in it is not understood, or a file is missing.
    """
    here = path.absolute().parent
    given = take(
        read_yaml(path, "chain"), str(path),
        start=(dict, ...), work=(str, ...), train=(str, ...), stop=(dict, ...), stages=(list, ...),
        distill=(dict, {}), baseline=(dict, None), seed=(int, 0),
    )  # fmt: skip
    start = take(given["start"], f"{path}, start", model=(str, ...), state_dict=(str, None), optimizer=(str, None),
                 train=((bool, str), False), stop=(dict, None))  # fmt: skip
    reading = _Reading(path, here, given["train"], given["stop"])
    stages = [reading.start(start)]
    for number, stage in enumerate(given["stages"], 1):
        stages.append(reading.stage(stage, f"{path}, stage {number}"))
    if given["baseline"] is not None:
        stages.append(reading.alone(given["baseline"]))
    names = [stage.name for stage in stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInputError(f"{path}: two stages are called {twice!r}")
    distill = dict(given["distill"])
    patterns = tuple(distill.pop("features", ("*",)))
    model, state, optimizer = (reading.file(start[key]) for key in ("model", "state_dict", "optimizer"))
    assert model is not None
    return Chain(model, state, optimizer, here / given["work"], tuple(stages), given["seed"], patterns, distill)


@dataclass(frozen=True)
class _Reading:
    """Reads stages; what they leave out is as for the whole chain."""

    path: Path
    here: Path
    train: str
    stop: Mapping[str, Any]

    def file(self, name: str | None) -> Path | None:
        if name is None:
            return None
        if not (self.here / name).is_file():
            raise BadInputError(f"{self.path}: there is no file {name}")
        return self.here / name

    def start(self, given: Mapping[str, Any]) -> Stage:
        own = given["train"] if isinstance(given["train"], str) else self.train
        return Stage(
            "start", self._template(own) if given["train"] else None, self._stop(given["stop"], "start"), kind="start"
        )

    def stage(self, given: Any, where: str) -> Stage:
        found = take(
            given, where, name=(str, ...), widen=(dict, None), deepen=(dict, None), target=(str, None),
            state_dict=(str, None), exact=(bool, True), train=(str, self.train), stop=(dict, None),
        )  # fmt: skip
        if not found["name"].replace("-", "").replace("_", "").isalnum():
            raise BadInputError(f"{where}: a name is of letters, digits, - and _, not {found['name']!r}")
        steps = [{"operation": how, **found[how]} for how in ("widen", "deepen") if found[how] is not None]
        if bool(steps) == bool(found["target"]):
            raise BadInputError(f"{where} needs either widen or deepen, or a target")
        if found["state_dict"] and not found["target"]:
            raise BadInputError(f"{where}: a state_dict is for a target")
        check_steps(steps, where)
        stop = self._stop(found["stop"], where)
        target, state = self.file(found["target"]), self.file(found["state_dict"])
        template = self._template(found["train"])
        return Stage(found["name"], template, stop, tuple(steps), target, state, found["exact"])

    def alone(self, given: Mapping[str, Any]) -> Stage:
        found = take(given, f"{self.path}, baseline", train=(str, ...), stop=(dict, None))
        stop = self._stop(found["stop"], "baseline")
        return Stage("alone", self._template(found["train"]), stop, kind="alone", exact=False)

    def _template(self, text: str) -> Template:
        return Template.of(text, self.here)

    def _stop(self, given: Mapping[str, Any] | None, where: str) -> Stop:
        found = take({**self.stop, **(given or {})}, f"{where}, stop", metric=(str, ...), mode=(str, "min"),
                     target=(_NUMBER, None), patience=(int, None), seconds=(_NUMBER, None), steps=(int, None),
                     silence=(_NUMBER, 600.0), grace=(_NUMBER, 60.0))  # fmt: skip
        if found["mode"] not in ("min", "max"):
            raise BadInputError(f"{where}, stop: mode is min or max, not {found['mode']!r}")
        if all(found[name] is None for name in ("steps", "target", "patience", "seconds")):
            raise BadInputError(f"{where}, stop: say when to stop: steps, target, patience or seconds")
        return Stop(**found)
