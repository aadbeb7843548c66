"""Kill the growing of a checkpoint with -9 at random moments, go on, and compare the bytes with an undisturbed run.

python tools/hf_kill.py [--times 10]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from hf_table import import_torchvision, make


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    import_torchvision()
    from onnx_net2net.framework.huggingface.grow import grow_checkpoint
    from onnx_net2net.framework.huggingface.student import Request
    from onnx_net2net.framework.huggingface.teacher import open_teacher

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make("llama", root / "teacher")
        teacher = open_teacher(root / "teacher")
        _ = teacher.graph
        request = Request(factor=2.0, depth="2x")
        started = time.perf_counter()
        grow_checkpoint(teacher, root / "whole", request, shard_size=20_000)
        seconds = time.perf_counter() - started
        shards = len(list((root / "whole").glob("*.safetensors")))
        folder = root / ".out.growing"
        killed = kept = 0
        while killed < options.times:
            child = os.fork()
            if not child:
                grow_checkpoint(teacher, root / "out", request, shard_size=20_000)
                os._exit(0)
            wanted, deadline = random.randrange(shards), time.perf_counter() + seconds * random.uniform(0.5, 1.5)
            while len(list(folder.glob("*.safetensors"))) < wanted and time.perf_counter() < deadline:
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
            kept = max(kept, len(list(folder.glob("*.safetensors"))))
            if (root / "out").exists():
                assert digest(root / "out") == digest(root / "whole"), "a run that ended before it was killed differs"
                (root / "out").rename(root / f"ended{killed}")
        grow_checkpoint(teacher, root / "out", request, shard_size=20_000)
        same = digest(root / "out") == digest(root / "whole")
        left = [path.name for path in root.iterdir() if path.name.startswith(".")]
        print(
            f"killed {killed} times, up to {kept} of {shards} shards kept; the same bytes: {same}; left behind: {left}"
        )
        raise SystemExit(not same or bool(left))


if __name__ == "__main__":
    main()
