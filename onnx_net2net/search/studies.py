"""Studies of Optuna: proposals of candidates, and the results of those that were tried.

A proposal is a function of the seed, of its number and of the trials before it. So a study that goes on after its
runner was killed comes to what it would have come to. Optuna's own samplers propose, on a copy of the study in memory;
the trial is then written in one piece.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx_net2net.errors import BadInputError, one_line, optional
from onnx_net2net.search.space import Candidate, Space, Variable

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")
"""How candidates are proposed; auto is NSGA-II where there are several objectives, and TPE otherwise."""

_TRIES = 30
"""So many proposals may be known already before a new candidate is drawn at random."""

_SETTINGS = "settings"


class Study:
    """A study: trials by number, each with a candidate, notes and maybe values."""

    def __init__(
        self, storage: str, name: str, space: Space, modes: Sequence[str], sampler: str, seed: int, batch: int
    ) -> None:
        """Open a study, or make one.

        Args:
            storage: Where it is kept: anything that Optuna takes, such as sqlite:///study.db.
            name: Its name there.
            space: What varies.
            modes: "min" or "max", for each objective.
            sampler: One of `SAMPLERS`.
            seed: Of the proposals.
            batch: How many candidates are proposed before results of the first are known.

        Raises:
            BadInputError: If Optuna is not installed, or the storage cannot be used.
        """
        self._optuna = _optuna()
        self._space, self._sampler, self._seed, self._batch = space, sampler, seed, batch
        self._directions = ["minimize" if mode == "min" else "maximize" for mode in modes]
        self._distributions = {v.name: self._distribution(v) for v in space.variables}
        self._storage = storage
        with self._using():
            self._study = self._optuna.create_study(
                storage=storage, study_name=name, directions=self._directions, load_if_exists=True
            )

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Note what the study is made with; refuse to go on with something else.

        Raises:
            BadInputError: If it was made with something else; the text says with what.
        """
        with self._using():
            known = self._study.user_attrs.get(_SETTINGS)
            if known is None:
                self._study.set_user_attr(_SETTINGS, dict(settings))
                return
        other = [name for name in settings if known.get(name) != settings[name]]
        if other:
            raise BadInputError(
                f"this study was made with another {other[0]}; give the same again, or another --study and --work"
            )

    def trials(self) -> list[Any]:
        """Return all trials, by number."""
        return list(self._study.get_trials(deepcopy=False))

    def propose(self, notes: Mapping[str, Any]) -> int | None:
        """Write the next trial, and return its number; None if there is nothing else to try.

        Args:
            notes: What is noted of it.
        """
        known = self.trials()
        proposed = self._proposal(known)
        if proposed is None:
            return None
        template = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING, params=proposed.params, user_attrs=dict(notes),
            distributions=self._distributions, system_attrs=proposed.system_attrs,
        )  # fmt: skip
        template.datetime_start = datetime.datetime.now()
        with self._using():
            self._study.add_trial(template)
        return len(known)

    def note(self, number: int, **notes: Any) -> None:
        """Note something of a trial that is not finished."""
        for name, value in notes.items():
            self._change(number, "set_trial_user_attr", name, value)

    def report(self, number: int, step: int, value: float) -> None:
        """Note a value on the way, for who looks at the study in a dashboard."""
        self._change(number, "set_trial_intermediate_value", step, value)

    def tell(self, number: int, state: str, values: Sequence[float] | None = None) -> None:
        """Finish a trial: "complete" with values, "pruned" or "fail"."""
        self._change(number, "set_trial_state_values", self._optuna.trial.TrialState[state.upper()], values)

    def _change(self, number: int, how: str, *values: Any) -> None:
        """Change a trial that is not finished."""
        trial = self.trials()[number]
        if not trial.state.is_finished():
            with self._using():
                getattr(self._study._storage, how)(trial._trial_id, *values)

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """Turn what goes wrong with the storage into one line.

        Raises:
            BadInputError: In its place.
        """
        try:
            yield
        except Exception as error:  # of databases and drivers, each has its own
            cause = error.__cause__ or error  # of Optuna's, which tells less
            raise BadInputError(f"cannot use the study {self._storage}: {one_line(cause)}") from error

    def _proposal(self, known: Sequence[Any]) -> Any:
        """Return a trial in memory whose candidate is new."""
        taken = {_key(trial.params) for trial in known}
        for seed in self._seeds(len(known)):
            memory = self._optuna.create_study(directions=self._directions, sampler=self._sampler_of(seed))
            memory.add_trials(known)
            trial = memory.ask(self._distributions)
            if _key(trial.params) not in taken:
                return memory.get_trials(deepcopy=False)[trial.number]
        left = [c for c in self._space.candidates() if _key(c) not in taken] if self._space.size < 1e6 else []
        if not left:
            return None
        chosen = left[next(self._seeds(len(known))) % len(left)]
        return self._optuna.trial.create_trial(params=dict(chosen), distributions=self._distributions, values=[
            0.0 for _ in self._directions])  # fmt: skip

    def _seeds(self, number: int) -> Iterator[int]:
        for attempt in range(_TRIES):
            yield (self._seed * 1_000_003 + number * 101 + attempt) % 2**31

    def _sampler_of(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        kind = self._sampler
        if kind == "auto":
            kind = "nsga2" if len(self._directions) > 1 else "tpe"
        if kind == "random":
            return samplers.RandomSampler(seed=seed)
        if kind == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self._batch)
        if kind == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, self._batch))
        return samplers.TPESampler(
            seed=seed, n_startup_trials=self._batch, multivariate=True, group=True, constant_liar=True
        )

    def _distribution(self, variable: Variable) -> Any:
        distributions = self._optuna.distributions
        if variable.choices:
            return distributions.CategoricalDistribution(variable.choices)
        return distributions.FloatDistribution(variable.low, variable.high, log=variable.log)


def _key(candidate: Candidate) -> str:
    return repr(sorted(candidate.items()))


def _optuna() -> Any:
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
    optuna = optional("optuna", "explore needs Optuna: pip install 'onnx-net2net[explore]'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
