"""Deeper modules in memory: blocks of a list get copies of themselves that change nothing at first.

Which blocks can be repeated, and which weights of a copy are zero so that its residual branch adds nothing, is told by
`deepen` on the exported graph, and `framework.deeper` says which modules these are. A copy is a deep copy of the user's
own block, put into the `nn.ModuleList` or `nn.Sequential` that has the block; what comes behind moves on. Numbers by
which blocks know their places (`layer_idx`) and how many there are (`num_layers`) are set. A class that does not run
what its list gained is refused: the copies are seen to run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.formats.state_dicts import from_torch
from onnx_net2net.framework.live.attributes import Slot, slots_of
from onnx_net2net.framework.live.example import Example
from onnx_net2net.framework.live.exported import duplicate, export, move_apart
from onnx_net2net.framework.live.tensors import tensors_of
from onnx_net2net.framework.statedict.carry import Carrier, descendants_of, match_all
from onnx_net2net.framework.statedict.deeper import Placed, deepened, parted
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.match import Match, StoredConstant, constants_of
from onnx_net2net.model.model import Model
from onnx_net2net.operations.deepen.deepen import Deepening, deepen

COUNTS = ("layers", "layer", "blocks", "depth", "stages", "cells")
"""What the names of numbers end in that say how many blocks there are."""

_UNCLEAR = "{entry} has the same values as other tensors of the module"

_ADVICE = "fill a deeper class by `fill`"


@dataclass(frozen=True)
class InsertedBlock:
    """A copy of a block in a list."""

    source: int  # the place of the block that it is a copy of, in the old list
    zeros: frozenset[str]  # the tensors of it that are zero


@dataclass(frozen=True)
class Lengthened:
    """A list of blocks that gets copies."""

    path: str
    old: int
    inserted: Mapping[int, InsertedBlock]  # by their places in the new list

    @property
    def new(self) -> int:
        """How many blocks it has then."""
        return self.old + len(self.inserted)

    def __str__(self) -> str:
        return f"{self.path}  {self.old} -> {self.new} blocks"


@dataclass(frozen=True)
class Depth:
    """How a module gets deeper; it can be done to the module, and to copies of it.

    Attributes:
        lists: The lists that get copies.
        sets_counts: Whether numbers that are how many blocks there are get the new number.
    """

    lists: tuple[Lengthened, ...]
    sets_counts: bool = True

    def apply(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> list[nn.Module]:
        """Put copies into the lists of a module; optimizers get their parameters, without a state as yet.

        Args:
            module: One of the class and sizes that this was found for.
            optimizers: Those of its parameters.

        Returns:
            The copies.
        """
        made: list[nn.Module] = []
        origins: dict[int, nn.Parameter] = {}
        for one in self.lists:
            made += _lengthen(module, one, origins)
            if self.sets_counts:
                for slot in _counts(module, one):
                    slot.set(one.new)
                    _spread_lists(slot.holder, one)
        for optimizer in optimizers:
            _add_parameters(module, optimizer, origins)
        return made


def find_depth(
    module: nn.Module, example: Example, option: Any, seed: int, is_same: Callable[[nn.Module], bool]
) -> Depth:
    """Find out how a module gets deeper.

    Args:
        module: The module, in double precision and eval mode; it is not changed.
        example: What it is called with.
        option: How many times as deep every group of blocks gets (2 or "2x"), or how many copies by names or patterns
            of blocks or groups, as in `onnx_net2net.deepen`.
        seed: Of every random choice.
        is_same: Tells whether a deeper module computes what the module does.

    Raises:
        BadInputError: The option makes no sense.
        RefusedError: Blocks cannot be repeated, or the class does not follow.
    """
    teacher = duplicate(module)
    move_apart(teacher)
    model = export(teacher, example)
    lists = _lists(teacher, model, _deepened(model, option, seed))
    reason = ""
    for sets_counts in (True, False):
        depth = Depth(lists, sets_counts)
        reason = _obstacle(duplicate(module), example, depth, is_same)
        if not reason:
            return depth
    raise RefusedError(reason)


def _deepened(model: Model, option: Any, seed: int) -> Deepening:
    options: dict[str, Any] = {"repeat": option} if isinstance(option, Mapping | list | tuple) else {"depth": option}
    try:
        return deepen(model, **options, seed=seed, framework="torch")
    except RefusedError as error:
        try:
            return deepen(model, **options, seed=seed, framework="torch", append=True)
        except RefusedError:
            raise error from None


def _obstacle(student: nn.Module, example: Example, depth: Depth, is_same: Callable[[nn.Module], bool]) -> str:
    """Return why a class does not follow; nothing if it does."""
    before = [type(one).__name__ for one in student.modules()]
    copies = depth.apply(student)
    idle = set(copies)
    handles = [one.register_forward_pre_hook(lambda own, _: idle.discard(own)) for one in copies]
    path = depth.lists[0].path
    try:
        example(student)
    except Exception as error:  # of the user's own code
        return f"{before[0]} does not run with more blocks in {path}: {type(error).__name__}: {error}; {_ADVICE}"
    finally:
        for handle in handles:
            handle.remove()
    if idle:
        return f"{before[0]} does not run what {path} gained: its forward counts or names its blocks itself; {_ADVICE}"
    if not is_same(student):
        return f"{before[0]} computes something else with more blocks in {path}; {_ADVICE}"
    return ""


# --- Which blocks --------------------------------------------------------------------------------------------


def _lists(module: nn.Module, model: Model, deepening: Deepening) -> tuple[Lengthened, ...]:
    """Return what a growth of the graph means for the lists of the module."""
    entries, constants = from_torch(tensors_of(module)), constants_of(model)
    matches = match_all(entries, constants)
    descendants = {name: descendants_of(constant, ()) for name, constant in constants.items()}
    carrier = Carrier(entries, constants, constants, descendants, matches, _UNCLEAR)
    placed = [Placed(Entry(name, "same", (), stored), stored, carrier.later(name)) for name, stored in entries.items()]
    after = constants_of(deepening.student)
    try:
        deeper = deepened(placed, deepening.copies, constants)
    except RefusedError as error:
        raise _shared(module) or error from error
    found: dict[str, dict[int, tuple[int, set[str]]]] = {}
    for name, one in deeper.items():
        if one.is_copy:
            path, place, source, rest = _place(module, name, one.entry.name)
            _, zeros = found.setdefault(path, {}).setdefault(place, (source, set()))
            zeros.update([rest] if _is_zeroed(one, after) else [])
    if not found:
        raise RefusedError("there are no blocks to repeat")
    return tuple(
        Lengthened(path, len(list(module.get_submodule(path).children())),
                   {place: InsertedBlock(source, frozenset(zeros)) for place, (source, zeros) in copies.items()})
        for path, copies in found.items()
    )  # fmt: skip


def _shared(module: nn.Module) -> RefusedError | None:
    """Return why blocks that share weights cannot be copied, None if there are none."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        differing = [one for one, step in zip(name.split("."), other.split("."), strict=False) if one != step]
        if other != name and len(differing) == 1 and differing[0].isdigit():
            return RefusedError(
                f"{other} and {name} are one tensor, and it is unclear which one a copy of the block would have"
            )
    return None


def _place(module: nn.Module, new: str, old: str) -> tuple[str, int, int, str]:
    """Return the list that an entry's copy is in, its place there and that of the original, and the rest of its name.

    Raises:
        RefusedError: If that is no list.
    """
    steps = list(zip(new.split("."), old.split("."), strict=True))
    differing = [k for k, (one, other) in enumerate(steps) if one != other]
    path = ".".join(one for one, _ in steps[: differing[0]])
    holder = module.get_submodule(path)
    if len(differing) != 1 or not isinstance(holder, nn.ModuleList | nn.Sequential):
        raise RefusedError(
            f"{old.rpartition('.')[0]} is in no nn.ModuleList or nn.Sequential that could get a copy; {_ADVICE}"
        )
    names = list(dict(holder.named_children()))
    _, first = parted(names[0])
    (one, other), rest = steps[differing[0]], ".".join(step for step, _ in steps[differing[0] + 1 :])
    return path, parted(one)[1] - first, parted(other)[1] - first, rest


def _is_zeroed(placed: Placed, constants: Mapping[str, StoredConstant]) -> bool:
    """Tell whether a copied entry is zero where the original is not."""
    match: Match | None = placed.matches[0] if placed.matches else None
    values = match.read(constants) if match is not None and match.axes is None else placed.tensor.read()
    return not np.any(values) and bool(np.any(placed.entry.stored.read()))


# --- In a module ---------------------------------------------------------------------------------------------


def _lengthen(module: nn.Module, one: Lengthened, origins: dict[int, nn.Parameter]) -> Iterator[nn.Module]:
    """Put copies into a list; note the parameter that each of theirs is a copy of. Yields the copies."""
    holder = module.get_submodule(one.path)
    children = dict(holder.named_children())
    names, blocks = list(children), list(children.values())
    before, first = parted(names[0])
    rest = iter(blocks)
    copies = {place: _copy(module, blocks[own.source], own, origins) for place, own in one.inserted.items()}
    new = [copies[place] if place in copies else next(rest) for place in range(one.new)]
    numbers = list(_numbers(blocks))
    holder._modules.clear()
    for place, block in enumerate(new):
        holder._modules[f"{before}{first + place}"] = block
        for path, keys in numbers:
            for slot in slots_of(block.get_submodule(path), path):
                if slot.keys == keys:
                    slot.set(place)
    yield from copies.values()


def _copy(module: nn.Module, block: nn.Module, inserted: InsertedBlock, origins: dict[int, nn.Parameter]) -> nn.Module:
    """Copy a block; what it shares with modules outside of it stays shared.

    Raises:
        RefusedError: If a tensor that has to be zero is shared.
    """
    inside = set(block.modules())
    outside = {id(value) for one in module.modules() if one not in inside for value in _held(one)}
    shared = {id(value): value for one in inside for value in _held(one)
              if id(value) in outside and hasattr(value, "__dict__")}  # fmt: skip
    made: nn.Module = copy.deepcopy(block, dict(shared))
    tensors = tensors_of(made)
    with torch.no_grad():
        for name in inserted.zeros:
            if id(tensors[name]) in shared:
                raise RefusedError(f"{name} is shared with other modules, so that no copy of it can be zero; {_ADVICE}")
            tensors[name].zero_()
    for name, parameter in block.named_parameters():
        twin = made.get_parameter(name)
        twin.grad = None
        if twin is not parameter:
            origins[id(twin)] = parameter
    return made


def _held(module: nn.Module) -> Iterator[Any]:
    """Yield the tensors and the other attributes of a module, without its children."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    yield from vars(module).values()


def _numbers(blocks: Sequence[nn.Module]) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield where each block of a list keeps its own place in it."""
    for path, one in blocks[0].named_modules():
        of_torch = type(one).__module__.startswith("torch.nn")
        for slot in slots_of(one, path) if not of_torch else ():
            if slot.value == 0 and len(slot.keys) == 1 and len(blocks) > 1 and _are_places(blocks, path, slot):
                yield path, slot.keys


def _are_places(blocks: Sequence[nn.Module], path: str, slot: Slot) -> bool:
    for place, block in enumerate(blocks):
        other = dict(block.named_modules()).get(path)
        if other is None or vars(other).get(str(slot.keys[0])) != place:
            return False
    return True


def _counts(module: nn.Module, one: Lengthened) -> Iterator[Slot]:
    """Yield where the modules around a list keep how many blocks it has."""
    steps = one.path.split(".")
    for end in range(len(steps)):
        path = ".".join(steps[:end])
        for slot in slots_of(module.get_submodule(path), path):
            if slot.value == one.old and str(slot.keys[-1]).endswith(COUNTS):
                yield slot


def _spread_lists(holder: Any, one: Lengthened) -> None:
    """Repeat what a config lists for each of its layers (`layer_types`)."""
    rest = iter(range(one.old))
    sources = [one.inserted[place].source if place in one.inserted else next(rest) for place in range(one.new)]
    for key, value in list(holder.items()) if isinstance(holder, dict) else ():
        if "layer" in str(key) and type(value) is list and len(value) == one.old:
            holder[key] = [value[source] for source in sources]


def _add_parameters(module: nn.Module, optimizer: torch.optim.Optimizer, origins: Mapping[int, nn.Parameter]) -> None:
    """Give an optimizer the parameters of copies, in the groups of their originals and in the module's order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = {key: place for place, key in enumerate(names)}
    for group in optimizer.param_groups:
        own = {id(parameter) for parameter in group["params"]}
        before = [order[id(parameter)] for parameter in group["params"] if id(parameter) in order]
        added = [p for p in module.parameters() if id(p) in origins and id(origins[id(p)]) in own]
        together = [*group["params"], *added]
        if before == sorted(before) and len(before) == len(own):
            together.sort(key=lambda parameter: order[id(parameter)])
        group["params"] = together
        if "param_names" in group:
            group["param_names"] = [names.get(id(parameter), "") for parameter in together]
