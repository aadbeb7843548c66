"""Grow a large checkpoint, and measure time and memory beside `cp` of the result.

    python tools/hf_large.py make FOLDER [--kind llama|moe] [--layers N]  # 2.6 billion weights, bfloat16, four shards
    python tools/hf_large.py grow FOLDER OUT [--no-verify]                # prints a line of JSON

Memory is the peak of anonymous pages of the growing process (RssAnon): pages of files in the cache of the system are
none of it. The checkpoint is made shard by shard, of random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

LLAMA = {"hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20, "num_key_value_heads": 20,
         "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 2048,
         "tie_word_embeddings": False}  # fmt: skip
MOE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 8,
       "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 2048, "num_local_experts": 16,
       "num_experts_per_tok": 2, "tie_word_embeddings": False}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", LLAMA, 31), "moe": ("MixtralForCausalLM", MOE, 17)
}  # fmt: skip


def make(folder: Path, kind: str, layers: int | None) -> None:
    """Write a checkpoint of random weights, one tensor at a time."""
    import numpy as np
    import transformers
    from checkpoint_table import import_torchvision

    import_torchvision()
    from onnx_net2net.framework.formats.state_dicts import DTYPES
    from onnx_net2net.framework.formats.stored import Stored
    from onnx_net2net.framework.huggingface.parameters import StudentParameter, Written
    from onnx_net2net.framework.huggingface.skeleton import build_skeleton
    from onnx_net2net.framework.huggingface.writing import write_shard

    name, options, count = KINDS[kind]
    model_class = getattr(transformers, name)
    config = model_class.config_class(**options, num_hidden_layers=layers or count)
    config.architectures, config.dtype = [name], "bfloat16"
    skeleton = build_skeleton(model_class, config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    dtype = np.dtype(DTYPES["BF16"])

    def elements(name: str, shape: tuple[int, ...], start: int, stop: int) -> Any:
        rng = np.random.Generator(np.random.SFC64([zlib.crc32(name.encode()), start]))
        drawn = rng.standard_normal(stop - start, np.float32)
        return (1 + 0.1 * drawn if len(shape) == 1 else drawn / math.sqrt(shape[-1])).astype(dtype)

    tensors = []
    for name, cut in skeleton.cuts.items():
        shape = skeleton.shapes[cut.parameter]

        own = partial(elements, cut.parameter, shape)
        stored = Stored(shape, dtype, lambda: None, elements=own)  # nobody reads all of it
        tensors.append(Written(name, cut, StudentParameter(cut.parameter, stored)))
    total = sum(tensor.nbytes for tensor in tensors)
    parts: list[list[Any]] = [[] for _ in range(4)]
    done = 0
    for tensor in tensors:
        parts[min(3, done * 4 // total)].append(tensor)
        done += tensor.nbytes
    weight_map = {}
    for number, own in enumerate(parts, 1):
        file = f"model-{number:05}-of-00004.safetensors"
        write_shard(folder / file, own)
        weight_map |= {tensor.name: file for tensor in own}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"{total / 2:,.0f} weights, {total / 1e9:.2f} GB")


class Peak(threading.Thread):
    """Follows the anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.start_of = 0, 0
        self.start()

    def run(self) -> None:
        """Look every 20 ms."""
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.most = max(self.most, int(line.split()[1]) * 1024)
            time.sleep(0.02)

    def take(self) -> float:
        """Return the peak since the last call, in GB."""
        found, self.most = self.most, 0
        return found / 1e9


def grow(folder: Path, out: Path, verify: bool, factor: float) -> None:
    """Grow a checkpoint, and print times and peaks."""
    from checkpoint_table import import_torchvision

    import_torchvision()
    peak = Peak()
    from onnx_net2net.framework.huggingface import grow as growing, student as students
    from onnx_net2net.framework.huggingface.parameters import parameters_of
    from onnx_net2net.framework.huggingface.proof import TeacherRun
    from onnx_net2net.framework.huggingface.teacher import open_teacher

    found: dict[str, Any] = {}
    started = time.perf_counter()

    def note(what: str) -> None:
        nonlocal started
        now = time.perf_counter()
        found[what] = {"seconds": round(now - started, 1), "peak GB": round(peak.take(), 3)}
        started = now
        print(what, found[what], file=sys.stderr, flush=True)

    teacher = open_teacher(folder)
    note("import and open")
    _ = teacher.graph
    note("export")
    request = students.Request(factor=factor)
    grown = growing.grow_checkpoint(teacher, out, request, verify=False)
    note("plan and write")
    if verify:
        written, _ = parameters_of(grown.student.skeleton, growing.read_folder(out).tensors)
        proof = TeacherRun(teacher).compare(grown.student, written)
        found["proof says"] = list(proof.lines())
        note("proof")
    for shard in sorted(out.glob("*.safetensors")):  # one at a time, so that the disk need not hold two of all
        copied = out.with_name(f"{shard.name}.copy")
        subprocess.run(["cp", str(shard), str(copied)], check=True)
        copied.unlink()
    note("cp of the output")
    print(json.dumps({**found, "bytes": grown.student.nbytes, "config": grown.to_dict()["config"]}))


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, growing = commands.add_parser("make"), commands.add_parser("grow")
    for command in (making, growing):
        command.add_argument("folder", type=Path)
    making.add_argument("--kind", choices=KINDS, default="llama")
    making.add_argument("--layers", type=int)
    growing.add_argument("out", type=Path)
    growing.add_argument("--no-verify", action="store_false", dest="verify")
    growing.add_argument("--factor", type=float, default=2.0)
    options = parser.parse_args()
    if options.command == "make":
        make(options.folder, options.kind, options.layers)
    else:
        grow(options.folder, options.out, options.verify, options.factor)


if __name__ == "__main__":
    main()
