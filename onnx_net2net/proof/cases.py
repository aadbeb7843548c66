"""The inputs on which two models are compared, and the teacher's outputs; bounds on the time that this takes."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.saving import Progress
from onnx_net2net.model.wire import without_data
from onnx_net2net.proof.compare import Judge, OutputReport, Typical, finite, largest_of, noise_of
from onnx_net2net.proof.interfaces import RunFunction
from onnx_net2net.proof.movement import bolder, unmoved
from onnx_net2net.proof.noise import Error, drawn, is_rounded_dynamically, noisy_twin, nudged, scores_in
from onnx_net2net.run.inputs import SCALES, Feeds, InputSpec, accepted, check_feeds, draw
from onnx_net2net.run.session import LEVELS, Level, Runner, blaming

QUICK_SECONDS = 0.2
"""Further samples are run as long as all runs together take less than this."""

MOST_SAMPLES = 24
"""The largest number of such samples."""

ENOUGH_ELEMENTS = 32
MOST_DRAWS = 8
"""The noise of a single element may round to zero. So a smaller output is moved up to `MOST_DRAWS` times."""

COSTLY_DRAWS = 3
"""The same for a model with costly runs; there the elements of all samples count together."""

MOVING_SECONDS = 5.0
"""How long inputs are sought that move an output which has not moved so far."""

COSTLY_SECONDS = 0.1
"""If a run takes more processor time than this, two samples and sizes are compared instead of three, with few draws.
Growing a model costs about as much as a few runs of it, and its proof should not cost more."""


@dataclass(eq=False)
class Case:
    """One set of inputs and what the teacher makes of it.

    Attributes:
        feeds: The inputs.
        answers: The outputs at each optimization level.
        nudged: The outputs when everything moves by one unit in the last place, one a draw.
        steady: The same, but what dynamic quantizers round, which may be another step then.
        binding: The sizes of the dynamic axes.
        has_choices: Whether scores decide what the teacher computes with.
    """

    feeds: Feeds
    answers: list[dict[str, Array]]
    nudged: list[dict[str, Array]]
    steady: list[dict[str, Array]]
    binding: dict[str, int] = field(default_factory=dict)
    has_choices: bool = False

    @property
    def is_rounded(self) -> bool:
        """Whether there are dynamic quantizers."""
        return self.steady is not self.nudged

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        return sum(array.nbytes for array in self.feeds.values())

    def is_torn(self, cap: float) -> bool:
        """Tell whether optimizations alone change a float output by more than any noise excuses.

        Where exact sums decide over steps (Sign of whole numbers), folded weights that are no longer whole fall to
        either side.
        """
        first, *others = self.answers
        return any(noise_of(v, [o[n] for o in others]) > cap * largest_of(v) for n, v in first.items())

    def is_undecided(self, cap: float) -> bool:
        """Tell whether equal scores tie: noise changes a float output by more than any noise excuses."""
        outputs = self.answers[0].items() if self.has_choices else ()
        return any(noise_of(v, [other[name] for other in self.nudged]) > cap * largest_of(v) for name, v in outputs)

    def judged(
        self, answer: Mapping[str, Array], judge: Judge, typical: Mapping[str, Typical], steady: bool
    ) -> list[OutputReport]:
        """Compare a student's answer to this case, output by output."""
        moved = self.steady if steady else self.nudged
        return [
            judge(name, answer.get(name), [one[name] for one in self.answers], [one[name] for one in moved],
                  typical=typical.get(name, Typical()))
            for name in self.answers[0]
        ]  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """What the teacher was run for.

    Attributes:
        cases: Inputs and answers.
        unmoved: The outputs that none of the cases moves.
        feeds: Two sets of inputs of the same sizes.
        levels: The optimization levels at which the teacher runs.
        seconds: Processor time of one run, if that is why there are few of them; else 0.
    """

    cases: list[Case]
    unmoved: list[str]
    feeds: tuple[Feeds, Feeds]
    levels: list[Level] = field(default_factory=list)
    seconds: float = 0.0


def gather_cases(
    path: Path,
    open_with: Callable[..., Runner],
    specs: Sequence[InputSpec],
    moving: Sequence[str],
    given: Mapping[str, Array] | None,
    samples: int | None,
    seed: int,
    progress: Progress,
    cap: float,
) -> Gathered:
    """Run the teacher at each optimization level that it takes, on given inputs or else on generated ones.

    Inputs on which equal scores tie are left out, unless it is so on all.

    Raises:
        BadInputError: The teacher does not run, or is random.
    """
    found: Gathered | None = None
    refusal: BadInputError | None = None
    for level in LEVELS:
        try:
            with blaming(BadInputError, "the teacher does not run"):
                if found is None:
                    gathering = _Gathering(path, level, open_with, specs, seed, progress, cap)
                    found = gathering.generated(samples, moving) if given is None else gathering.given(given, moving)
                    del gathering  # with its sessions
                else:
                    answers = run_all(open_with(path, level), found.cases, "teacher", progress)
                    for case, answer in zip(found.cases, answers, strict=True):
                        case.answers.append(answer)
                found.levels.append(level)
        except BadInputError as error:  # a model that onnxruntime optimized before may refuse a level
            refusal = error
    if found is None:
        raise refusal or BadInputError("the teacher does not run")
    return found


def run_all(run: RunFunction, cases: Sequence[Case], what: str, progress: Progress) -> list[dict[str, Array]]:
    """Return the outputs of a model for each case."""
    found = []
    for done, case in enumerate(cases):
        progress(what, done, len(cases))
        found.append(run(case.feeds))
    return found


def typical(cases: Sequence[Case], *, steady: bool) -> dict[str, Typical]:
    """Return what each output is like in most cases."""
    found: dict[str, Typical] = {}
    for name in cases[0].answers[0]:
        firsts = [case.answers[0][name] for case in cases if name in case.answers[0]]
        draws = [case.steady if steady else case.nudged for case in cases if name in case.answers[0]]
        noises = [noise_of(v, [moved[name] for moved in own]) for v, own in zip(firsts, draws, strict=True)]
        # Where it is rounded away in most cases, the others tell how large it is.
        noise = statistics.median(noises) or math.sqrt(statistics.fmean(noise * noise for noise in noises))
        found[name] = Typical(noise, statistics.median(map(largest_of, firsts)))
    return found


@dataclass(frozen=True)
class _Twin:
    """A model with the errors of float arithmetic, drawn anew at each call."""

    run: Runner
    errors: Sequence[Error]

    def __call__(self, feeds: Feeds, rng: np.random.Generator) -> dict[str, Array]:
        return self.run({**feeds, **drawn(self.errors, rng)})


def _twins(proto: onnx.ModelProto, path: Path, level: Level, open_with: Callable[..., Runner]) -> Iterator[_Twin]:
    """Yield the noisy twin of a model; where quantizers choose their steps, also one that keeps these."""
    for steps in (True, False) if is_rounded_dynamically(proto) else (True,):
        twin = copy.deepcopy(proto)
        errors = noisy_twin(twin, steps=steps)
        yield _Twin(open_with(twin.SerializeToString(), level, file=path), errors)


class _Gathering:
    """Collects cases at one optimization level."""

    def __init__(
        self,
        path: Path,
        level: Level,
        open_with: Callable[..., Runner],
        specs: Sequence[InputSpec],
        seed: int,
        progress: Progress,
        cap: float,
    ) -> None:
        self._run = open_with(path, level)
        proto = without_data(path) or onnx.load(path, load_external_data=False)
        self._twins, self._has_choices = list(_twins(proto, path, level, open_with)), bool(scores_in(proto))
        self._specs = specs
        self._progress, self._cap = progress, cap
        self._rng, self._noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        self._cases: list[Case] = []
        self._seconds: list[float] = []
        self._elements = 0  # of the smallest output, moved so far

    def given(self, arrays: Mapping[str, Array], moving: Sequence[str]) -> Gathered:
        """Return the case of given inputs."""
        self._attempt(check_feeds(arrays, self._specs))
        self._check_repeatable()
        return self._moved(moving, is_given=True)

    def generated(self, samples: int | None, moving: Sequence[str]) -> Gathered:
        """Return cases of generated inputs that the teacher accepts."""
        found = accepted(self._specs, self._attempt, self._rng, wanted=self._few)
        if not self._is_costly:
            self._check_repeatable()
        for index in itertools.count(len(found)):
            if index >= (samples or self._few()) and (index >= MOST_SAMPLES or sum(self._seconds) > QUICK_SECONDS):
                break
            with contextlib.suppress(Exception):  # a scale too large for this model, or an index beyond a table
                scale = SCALES[index % len(SCALES)]
                self._attempt(draw(self._specs, found[index % len(found)], self._rng, scale=scale))
        for index, case in enumerate(self._cases):
            case.binding = found[index % len(found)]
        is_cut = self._is_costly and samples is None
        gathered = self._moved(moving)
        return replace(gathered, seconds=statistics.fmean(self._seconds) if is_cut else 0.0)

    @property
    def _is_costly(self) -> bool:
        """Whether runs cost so much that there are few."""
        return bool(self._seconds) and statistics.fmean(self._seconds) > COSTLY_SECONDS

    def _few(self) -> int:
        """Return how many samples and sizes are tried at least."""
        return 2 if self._is_costly else 3

    def _attempt(self, feeds: Feeds) -> None:
        """Add a case, or raise whatever tells that the teacher refuses these inputs."""
        self._progress("teacher", len(self._cases), max(self._few(), len(self._cases) + 1))
        wall, processor = time.perf_counter(), time.process_time()
        answer = self._run(feeds)
        # Others may have the processors, and threads that wait for work count as if they had some.
        self._seconds.append(min(time.perf_counter() - wall, time.process_time() - processor))
        if not any(np.any(finite(values)) for values in answer.values()):
            raise ValueError("all outputs are empty, NaN or infinite, so nothing can be compared")
        fewest = min((values.size for values in answer.values() if values.size), default=1)
        known, most = (self._elements, COSTLY_DRAWS) if self._is_costly else (0, MOST_DRAWS)
        least = most if self._has_choices else 1  # each parts two equal scores the other way round every second time
        draws = max(least, min(most, math.ceil((ENOUGH_ELEMENTS - known) / fewest)))
        self._elements += draws * fewest
        moved = [nudged(feeds, self._specs, self._rng) for _ in range(draws)]
        try:
            answers = [[noisy(one, self._noise) for one in moved] for noisy in self._twins]
        except Exception:  # a size hung on the last place of a float
            answers = [[self._run(one) for one in moved]]
        self._cases.append(Case(feeds, [answer], answers[0], answers[-1], has_choices=self._has_choices))

    def _check_repeatable(self) -> None:
        """Refuse a teacher whose floats differ between two runs by more than threads can make them."""
        case = self._cases[0]
        again = self._run(case.feeds)
        for name, values in case.answers[0].items():
            if values.dtype.kind == "f":
                slack = 0.01 * float(np.max(np.abs(values), initial=0, where=finite(values)))
                other = again[name]
                if other.shape != values.shape or not np.allclose(values, other, rtol=0.01, atol=slack, equal_nan=True):
                    raise BadInputError("the teacher is random: two runs on the same inputs differ")

    def _moved(self, moving: Sequence[str], *, is_given: bool = False) -> Gathered:
        """Look for inputs that move the outputs which none has moved so far; generated ones become cases."""
        self._cases = [case for case in self._cases if not case.is_undecided(self._cap)] or self._cases
        first = self._cases[0]
        binding = None if is_given else first.binding
        usual = typical(self._cases, steady=False)
        slack = {name: usual[name].slack for name in moving if name in usual}
        still = unmoved(slack, [case.answers[0] for case in self._cases])
        others: list[Feeds] = []
        started = time.perf_counter()
        for feeds in bolder(self._specs, first.feeds, binding, self._rng) if still else ():
            with contextlib.suppress(Exception):  # too large for this model
                answer = self._run(feeds)
                if all(np.all(finite(values)) for values in answer.values()):
                    others.append(feeds)
                    left = unmoved(still, [first.answers[0], answer])
                    if binding is not None and left != still:
                        self._attempt(feeds)
                        if (case := self._cases.pop()).is_undecided(self._cap):
                            continue
                        self._cases.append(replace(case, binding=dict(binding)))
                    still = left
            if not still or time.perf_counter() - started > MOVING_SECONDS:
                break
        if binding is None and not others:
            still = {}  # nothing else can be run, and whoever gave the inputs chose them
        return Gathered(self._cases, list(still), (first.feeds, others[0] if others else self._cases[-1].feeds))
