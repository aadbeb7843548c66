"""Searches that tests run: a small space, the training command of `chains`, and tables of what was found."""

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

from chains import TRAINER
from commands import MLP

from onnx_net2net.search.engines import Local
from onnx_net2net.search.explore import Exploration
from onnx_net2net.search.growing import SavedNetwork
from onnx_net2net.search.population import Population
from onnx_net2net.search.search import Options
from onnx_net2net.search.space import read_space
from onnx_net2net.search.training import Stop, Template

SPACE = """
widen: {fc1: [1x, 1.25x, 1.5x], fc2: [1x, 1.25x]}
train: {rate: [0.1, 0.2, 0.4]}
constraints: {parameters: 2x}
"""
BRED = """
widen: {fc1: [1x, 1.25x, 1.5x], fc2: [1x, 1.25x]}
train: {rate: {low: 0.01, high: 0.5, log: true}}
"""
"""The space of populations."""

TRAIN = f"{sys.executable} {TRAINER} --init {{init}} --out {{out}} --start {{start}} --steps {{steps}} --rate {{rate}}"
STOP = Stop("val_loss", silence=60)


def space_in(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    return read_space(folder / "space.yaml")


def explore(folder, space=SPACE, train=TRAIN, engine=None, jobs=1, stop=STOP, name="work", **changes):
    found = space_in(folder, space)
    options = Options(Template.of(train, folder, found.numbers), stop, (1, 2, 4), 0.4, 6, 3)
    options = dataclasses.replace(options, **changes)
    engine = engine or Local(jobs)
    return Exploration(SavedNetwork(MLP.absolute(), MLP.absolute()), found, options, engine, folder / name).run()


def population(folder, space=BRED, train=TRAIN, members=4, rounds=(2, 4, 6), seed=0):
    found = space_in(folder, space)
    options = Options(Template.of(train, folder, found.numbers), STOP, rounds, seed=seed, members=members)
    teacher = SavedNetwork(MLP.absolute(), MLP.absolute())
    return Population(teacher, found, options, Local(2), folder / "work")


def killed(code, folder, train, times=10):
    """Run a search of a folder again and again, and kill it each time at a random moment."""
    draw = random.Random(0)
    begin = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from searches import *; "
    arguments = "folder, train = Path(sys.argv[2]), sys.argv[3]; "
    command = [sys.executable, "-c", begin + arguments + code, str(Path(__file__).parent), str(folder), train]
    for _ in range(times):
        runner = subprocess.Popen(command)
        time.sleep(draw.uniform(3, 12))
        runner.kill()
        runner.wait()


def stages_table(rows):
    return [(r.name, r.cost.parameters, r.exact, r.outcome.curve, r.expected) for r in rows]


def trials_table(trials):
    return [(t.number, dict(t.candidate), t.state, t.reason, t.cost, [o.curve for o in t.outcomes]) for t in trials]


def rounds_table(rounds):
    return [
        [(m.number, dict(m.candidate), m.value, m.source, m.compute, m.curve) for m in members] for members in rounds
    ]
