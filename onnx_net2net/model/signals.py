"""Signals that ask a process to end and leave it the time to clean up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def caught_signals(react: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Catch what would end the process until the context is left; yields the numbers of those that came.

    Handlers run in the main thread; in another one nothing is caught, and nothing is interrupted by an exception.

    Args:
        react: Called at each signal; it may raise.
    """
    came: list[int] = []

    def catch(number: int, _: FrameType | None) -> None:
        came.append(number)
        react()

    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    caught = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}  # nohup ignores
    try:
        for number in caught:
            signal.signal(number, catch)
        yield came
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Let what would end the process wait until the context is left."""
    came: list[int] = []
    try:
        with caught_signals() as came:
            yield
    finally:
        if came:
            signal.raise_signal(came[0])
