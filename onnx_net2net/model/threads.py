"""Work on all processors: numpy lets other threads run while it computes, and so does the system while it writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(jobs: Generator[Callable[[], None], None, None], threads: int | None = None) -> None:
    """Run jobs in this thread and others; where one fails, no other begins, and its error is raised.

    Args:
        jobs: Yields them; asked by one thread at a time, and closed in the end.
        threads: How many threads; by default as many as there are processors.
    """
    lock = threading.Lock()

    def work() -> None:
        try:
            while True:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                job()
        except BaseException:
            with lock:
                jobs.close()
            raise

    with ThreadPoolExecutor(max(1, (threads or processors()) - 1)) as pool:
        others = [pool.submit(work) for _ in range((threads or processors()) - 1)]
        work()
        for other in others:
            other.result()
