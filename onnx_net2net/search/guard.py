"""Runs a command that ends with whoever started it: python guard.py COMMAND...

What starts it holds the other end of its standard input. A `T` there asks the command to end, a `K` ends it. So does
the end of the input, which comes when the starter has ended, however that was. All processes of the command end with
it. The file stands alone and imports little, so that it starts fast.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

INTERVAL = 0.02
"""Seconds between two looks."""


def main(command: "list[str]") -> int:
    """Run a command and return how it ended: its exit code, or 128 and the signal that ended it."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while child.poll() is None:
        if select.select([0], [], [], INTERVAL)[0]:
            word = os.read(0, 1)
            _signal(child.pid, signal.SIGTERM if word == b"T" else signal.SIGKILL)
            if word != b"T":
                child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it has left running
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
