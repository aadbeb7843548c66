"""The command `grow`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_net2net.cli.options import FACTOR, JSON, ONLY, SEED, SPREAD, Command, argument
from onnx_net2net.cli.output import answer, progress_bar, size_text, table
from onnx_net2net.cli.widen import sizes_of
from onnx_net2net.errors import BadInputError
from onnx_net2net.operations.widen.options import HOWS

if TYPE_CHECKING:
    from onnx_net2net.framework.huggingface.grow import GrownCheckpoint

_SUFFIXES = {"MB": 10**6, "GB": 10**9}


def run(options: argparse.Namespace) -> int:
    """Grow a checkpoint."""
    try:
        from onnx_net2net.framework.huggingface.grow import grow_checkpoint
        from onnx_net2net.framework.huggingface.running import MEMORY
        from onnx_net2net.framework.huggingface.student import Request
    except ImportError as error:
        raise BadInputError(f"checkpoints need more packages: pip install 'onnx-net2net[hf]' ({error})") from error
    if options.output is None and not options.dry_run:
        raise BadInputError("say where to write the student: -o OUT_DIR (or --dry-run)")
    request = Request(
        options.factor, sizes_of(options.sizes), tuple(options.only), options.depth, options.append, options.spread,
        options.seed, options.keep_numbers, options.how,
    )  # fmt: skip
    with progress_bar() as progress:
        grown = grow_checkpoint(
            options.checkpoint, None if options.dry_run else options.output, request, verify=options.verify,
            samples=options.samples, shard_size=_bytes("--shard-size", options.shard_size), progress=progress,
            memory=_bytes("--memory", options.memory) or MEMORY,
            trust_remote_code=options.trust_remote_code, module=options.module, optimizer=options.optimizer,
        )  # fmt: skip
    options.replaces = False  # the folder is new
    written = [] if options.dry_run else [options.output]
    record = {**grown.to_dict(), "output": str(options.output) if written else None}
    return answer(options, record, _lines(options, grown), *written)


COMMAND = Command(
    "llama-7b -o llama-25b --factor 2 --depth 1.5x",
    [
        argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="a folder with config.json and weights"),
        argument("--module", metavar="PACKAGE.MODULE:FACTORY",
                 help="a class of yours, or a function that returns a module, for checkpoints that neither "
                 "transformers nor timm can load; config.json has its arguments"),
        argument("-o", "--output", type=Path, metavar="OUT_DIR", help="the folder to write, which must not exist"),
        FACTOR,
        argument("--set", action="append", default=[], metavar="PATTERN=SIZE", dest="sizes",
                 help="size of the dims of this name, pattern or role (ffn, heads, experts): units (96), more units "
                 "(+4) or a multiplier (1.5x)"),
        ONLY,
        argument("--how", choices=HOWS[1:], default="split",
                 help="how a router treats copies of an expert, for --set experts=...: it chooses all copies together "
                 "(topk), or none until a load balancer raises their bias (lift); granular cuts experts into parts "
                 "that are chosen together (default: experts get no copies)"),
        argument("--depth", metavar="F", help="how many times as many layers, like 2x"),
        argument("--append", action="store_true", help="put the new layers behind the last one"),
        argument("--keep-numbers", action="store_true",
                 help="your class computes no number (like alpha / r) from its sizes"),
        argument("--optimizer", type=Path, metavar="PATH",
                 help="grow this state of an optimizer, too: a file of torch, or a folder of "
                 "torch.distributed.checkpoint"),
        argument("--shard-size", default="", metavar="SIZE", help="the largest size of a shard (default: 5GB)"),
        argument("--memory", default="", metavar="SIZE",
                 help="how much of a weight the comparison holds at a time (default: 512MB)"),
        argument("--dry-run", action="store_true", help="write nothing; print what would be written, and in what time"),
        argument("--samples", type=Path, metavar="FILE",
                 help="inputs to compare on: a .jsonl file of token ids or texts, one sample a line, or a .safetensors "
                 "file with a tensor for each argument of forward (default: random ones)"),
        argument("--no-verify", action="store_false", dest="verify", help="do not compare student and teacher"),
        argument("--trust-remote-code", action="store_true",
                 help="run the code of the class that lies in the checkpoint's folder"),
        SPREAD,
        SEED,
        JSON,
    ],
    run,
)  # fmt: skip


def _bytes(option: str, text: str) -> int | None:
    """Return a number of bytes written like 5GB; None for nothing."""
    factor = _SUFFIXES.get(text[-2:])
    try:
        if text and (factor is None or float(text[:-2]) * factor < 1):
            raise ValueError
        return int(float(text[:-2]) * factor) if factor else None
    except ValueError:
        raise BadInputError(f"{option} {text}: write a size like 500MB or 5GB") from None


def _lines(options: argparse.Namespace, grown: GrownCheckpoint) -> Iterator[Any]:
    found = grown.to_dict()
    rows = [([name, str(old), str(new)], False) for name, (old, new) in found["config"].items()]
    sizes = [["parameters", *(f"{found['parameters'][when]:,}" for when in ("before", "after"))],
             ["bytes", *(size_text(found["bytes"][when]) for when in ("before", "after"))]]  # fmt: skip
    where = options.output or "(dry run)"
    yield table(f"{options.checkpoint} -> {where}", ["config", ">before", ">after"], rows, sizes)
    yield from found["notes"]
    largest = size_text(max(size for _, size in grown.shards))
    many = f"{len(grown.shards)} files of weights, the largest of {largest}"
    yield many if len(grown.shards) > 1 else "one file of weights"
    if grown.proof:
        yield from grown.proof.lines()
    elif options.dry_run:
        yield f"computing its weights takes about {found['seconds']:.0f} s here; writing them comes to that"
    else:
        yield "not verified (--no-verify)"
