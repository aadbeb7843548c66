"""Runs a Python training script again and again without importing torch each time.

    with warm(Path("train.py")) as words: ...    # words are used in the place of "python train.py"

A server imports the script once and forks for each call. The client that is started instead of the script waits for
the fork, so that whoever starts it sees what it would see of the script. A client that is ended does not end the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def warm(script: Path) -> Iterator[str]:
    """Serve a script with a `main()` that reads `sys.argv`; yields the beginning of a command that runs it."""
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder) / "socket"
        server = subprocess.Popen([sys.executable, __file__, "serve", script.absolute(), address])
        try:
            while not address.exists():
                if server.poll() is not None:
                    raise RuntimeError("the script cannot be imported")
                time.sleep(0.1)
            yield f"{sys.executable} -I -S {Path(__file__).absolute()} call {address}"
        finally:
            server.kill()
            server.wait()


def serve(script: Path, address: Path) -> None:
    """Import a script and run it in forks."""
    sys.path.insert(0, str(script.parent))
    module = __import__(script.stem)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    listener.settimeout(1)
    starter = os.getppid()
    while os.getppid() == starter:  # which may be killed
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork():
            connection.close()
            continue
        given = json.loads(connection.makefile().readline())
        code = 1
        with contextlib.suppress(BaseException):
            os.chdir(given["folder"])
            sys.argv = [str(script), *given["arguments"]]
            module.main()
            code = 0
        with contextlib.suppress(OSError):  # the client was ended
            connection.sendall(bytes([code]))
        os._exit(code)


def call(address: str, arguments: list[str]) -> int:
    """Let the server run the script, and return its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    connection.sendall(json.dumps({"folder": os.getcwd(), "arguments": arguments}).encode() + b"\n")
    answer = connection.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:]))
