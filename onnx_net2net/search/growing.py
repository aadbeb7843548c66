"""A trained network becomes a larger one that is ready for training: file, weights and optimizer, all of them proven.

Weights are under the names of the user's class where the first network came with a state dict. Otherwise they are under
the names that `to_torch` gives them, and everything is read off the file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_net2net.analysis.groups import inspect
from onnx_net2net.analysis.names import matching
from onnx_net2net.errors import Net2NetError, RefusedError, WriteError
from onnx_net2net.framework.checkpoint import Checkpoint, checkpoint
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.fx.parameters import trained_of
from onnx_net2net.framework.optimizer import grow_state, read_state, write_state
from onnx_net2net.framework.refit import refit
from onnx_net2net.framework.statedict.filled import fill_state_dict
from onnx_net2net.framework.statedict.separate import separated
from onnx_net2net.model.model import Model, load
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.staging import work_folder, writing
from onnx_net2net.operations.replay import check_step, redo
from onnx_net2net.operations.transfer.transfer import proof, transfer
from onnx_net2net.operations.verify import verify
from onnx_net2net.search.training import checkpoint_of

Step = Mapping[str, Any]
"""An operation with its options, as `replay` takes it."""


@dataclass(frozen=True)
class SavedNetwork:
    """A network with its weights.

    Attributes:
        model: Its file.
        state: Its state dict.
        optimizer: The state of its optimizer, if there is one.
        own: Whether the state dict is that of a class of the user's.
    """

    model: Path
    state: Path
    optimizer: Path | None = None
    own: bool = False

    @property
    def files(self) -> list[Path]:
        """The files that it consists of."""
        return [path for path in (self.model, self.state, self.optimizer) if path is not None]


@dataclass(frozen=True)
class GrownNetwork:
    """A network that was made of another one.

    Attributes:
        network: What there is now.
        exact: Whether it computes what the other one does.
        notes: What is worth knowing, for people.
    """

    network: SavedNetwork
    exact: bool
    notes: tuple[str, ...] = ()


def begin(model: Path, state: Path | None, optimizer: Path | None, folder: Path) -> SavedNetwork:
    """Return the first network, from its file and perhaps its state dict and optimizer.

    Args:
        model: The file.
        state: The state dict of the user's class, if there is one.
        optimizer: The state of its optimizer, if there is one.
        folder: Where its weights are written if there is no state dict, and its file if that has to change.
    """
    if state is not None:
        loaded = load(model)
        apart = separated(loaded, state_dicts.read(state))
        if apart is not loaded:
            model = folder / "start.onnx"
            apart.save(model)
        return SavedNetwork(model, state, optimizer, own=True)
    path = folder / "start.safetensors"
    _write_own(load(model), path)
    return SavedNetwork(model, path, optimizer)


def check_steps(steps: Sequence[Step], where: str) -> None:
    """Refuse steps that make no sense; see `operations.replay.check_step`."""
    for step in steps:
        check_step(step, where)


def grow_network(teacher: SavedNetwork, steps: Sequence[Step], folder: Path, exact: bool = True) -> GrownNetwork:
    """Grow a network, prove that it computes the same, and write it.

    Args:
        teacher: The trained network.
        steps: What is done to it; nothing, if there are none.
        folder: Where `student.onnx`, its weights and its optimizer's state are written.
        exact: Whether to refuse a student that computes something else.

    Raises:
        BadInputError: If a file or a step cannot be used.
        NotEquivalentError: If the student computes something else, though it should not.
        RefusedError: If it cannot be grown exactly, or its weights do not go back into the class.
    """
    steps = _needed(load(teacher.model), steps)
    student, init = folder / "student.onnx", folder / f"init{teacher.state.suffix}"
    optimizer = folder / "optimizer.pt" if teacher.optimizer else None
    if not steps:
        for source, path in ((teacher.model, student), (teacher.state, init), (teacher.optimizer, optimizer)):
            if source is not None and path is not None:
                _copy(source, path)
        return GrownNetwork(SavedNetwork(student, init, optimizer, teacher.own), exact=True)
    model = load(teacher.model)
    default = {"framework": "torch"} if teacher.own else {}
    with work_folder() as work:
        asked = [{**(default if step["operation"] in ("widen", "deepen") else {}), **step} for step in steps]
        results = list(redo(model, asked, work))
        results[-1].student.save(student)
    found = verify(model, student, record=False)
    if exact:
        found.raise_if_different()
    made = checkpoint(model, student, teacher.state, untie=False)
    if teacher.own:
        made.save(init)
    else:
        _write_own(load(student), init)
    notes = list(made.notes) if teacher.own else []
    optimizer = _grow_optimizer(teacher, made, optimizer, notes)
    return GrownNetwork(SavedNetwork(student, init, optimizer, teacher.own), found.equivalent, tuple(notes))


def _needed(model: Model, steps: Sequence[Step]) -> list[Step]:
    """Leave out sizes that the network has already, and steps that then have nothing to do."""
    if not any(isinstance(size, int) for step in steps for size in step.get("sizes", {}).values()):
        return list(steps)
    groups = inspect(model).groups

    def is_new(name: str, size: object) -> bool:
        found = matching(name, groups, lambda group: (group.name, group.role, *group.aliases), "dim")
        return not isinstance(size, int) or any(group.size != size for group in found)

    left: list[Step] = []
    for step in steps:
        sizes = {name: size for name, size in step.get("sizes", {}).items() if is_new(name, size)}
        if sizes or "sizes" not in step:
            left.append({**step, **({"sizes": sizes} if sizes else {})})
    return left


def fill_network(
    teacher: SavedNetwork, target: Path, state: Path | None, folder: Path, exact: bool = True
) -> GrownNetwork:
    """Fill another network from a trained one; see `grow_network`.

    Args:
        teacher: The trained network.
        target: The network to fill.
        state: Its state dict, as it was when the target was exported.
        folder: Where the result is written.
        exact: Whether to refuse one that computes something else.
    """
    empty = load(target)
    result = transfer(load(teacher.model), separated(empty, state_dicts.read(state)) if state else empty, prove=False)
    _, obstacles = proof(result)
    if exact and obstacles:
        raise RefusedError(f"not exact: {obstacles[0]}")
    student, init = folder / "student.onnx", folder / f"init{state.suffix if state else '.safetensors'}"
    result.student.save(student)
    if state is None:
        _write_own(load(student), init)
    else:
        fill_state_dict(result, state).save(init)
    notes = ("the optimizer starts anew",) if teacher.optimizer else ()
    return GrownNetwork(SavedNetwork(student, init, None, state is not None), not obstacles, notes)


def trained(before: SavedNetwork, out: Path, folder: Path) -> SavedNetwork:
    """Return a network as a training left it; its weights are put back into its file, unless it wrote one itself.

    Args:
        before: What the training started from.
        out: The folder that it left.
        folder: Where the file is written.

    Raises:
        BadInputError: If what it left are not the weights of this network.
        RefusedError: If weights changed that the file has no place for.
    """
    state, optimizer, model = checkpoint_of(out)
    if model is None:
        model = folder / "model.onnx"
        refit(before.model, state, before=before.state if before.own else None).save(model)
    return SavedNetwork(model, state, optimizer, before.own)


def _write_own(model: Model, path: Path) -> None:
    """Write the weights of a file under the names that `to_torch` gives them."""
    tensors = dict(enumerate(all_tensors(model.proto)))
    places = {one.name: tensors[one.tensor] for one in trained_of(model).trained}
    state_dicts.write(path, places, lambda name: model.tensor(places[name]).numpy())


def _grow_optimizer(teacher: SavedNetwork, made: Checkpoint, path: Path | None, notes: list[str]) -> Path | None:
    """Write the grown state of an optimizer; where it cannot grow, the reason is noted, and there is none."""
    if teacher.optimizer is None or path is None:
        return None
    try:
        write_state(grow_state(read_state(teacher.optimizer), made), path)
    except WriteError:
        raise
    except Net2NetError as error:
        notes.append(f"the optimizer starts anew: {error}")
        return None
    return path


def _copy(source: Path, target: Path) -> None:
    """Copy a file, and the external data of a model."""
    if target.suffix == ".onnx":
        load(source).save(target)
        return
    with writing(target):
        shutil.copyfile(source, target)


def network_json(network: SavedNetwork) -> dict[str, Any]:
    """Return a network as JSON has it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(network).items()}


def network_of(value: Mapping[str, Any]) -> SavedNetwork:
    """Return the network that `network_json` made this of."""
    optimizer = value["optimizer"]
    return SavedNetwork(
        Path(value["model"]), Path(value["state"]), Path(optimizer) if optimizer else None, value["own"]
    )
