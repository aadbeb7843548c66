"""A training command of tests: what it trains is a number in its weights, and it may go wrong on the way.

A step halves the distance of the output's first bias to 7, and that distance is the metric. So the metric is a function
of the weights, as it is in earnest.
"""

import argparse
import errno
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

parser = argparse.ArgumentParser()
parser.add_argument("--init", type=Path)
parser.add_argument("--out", type=Path)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--start", type=int, default=0)
parser.add_argument("--how", default="well")
parser.add_argument("--wait", type=float, default=0.0)
parser.add_argument("--rate", type=float, default=0.5)
parser.add_argument("--grows", type=float, default=0.0, help="how much a thousand parameters speed it up")
options = parser.parse_args()
is_real = options.init.stat().st_size > 100
weights = load_file(options.init) if is_real else {"fc3.bias": np.zeros(1, np.float32)}
name = next(name for name in ("fc3.bias", "fc.bias", next(iter(weights))) if name in weights)
if options.how == "fresh":
    weights[name][0] = 8.0
size = sum(array.size for array in weights.values()) / 1000


def stopped(*_):
    if options.how != "deaf":
        leave()
        sys.exit(0)


def leave():
    if options.how == "empty":
        return
    if is_real:
        save_file(weights, options.out / "state.safetensors")
    else:
        shutil.copy(options.init, options.out / "state.safetensors")


def say(**entry):
    with open(options.out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def metric(step):
    if not is_real:
        return 1 / (1 + step)
    return abs(float(weights[name].reshape(-1)[0]) - 7)


signal.signal(signal.SIGTERM, stopped)
for step in range(options.start, options.steps + 1):
    if step > options.start:
        weights[name].reshape(-1)[0] += (7 - weights[name].reshape(-1)[0]) * min(
            0.9, options.rate + options.grows * size
        )
    if options.how == "crash" and step == 2:
        raise RuntimeError("out of memory")
    if options.how == "full" and step == 2:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if options.how in ("hang", "orphan") and step == 2:
        if options.how == "orphan":
            (options.out.parent / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if options.how == "words":
        print("no metric here", flush=True)
    elif options.how == "garbage" and step == 1:
        with open(options.out / "metrics.jsonl", "a") as file:
            file.write("step 1: fine\n")
    else:
        say(step=step, val_loss=math.nan if options.how == "nan" and step == 2 else metric(step), accuracy=0.5)
    time.sleep(options.wait)
leave()
