"""Processes that do one job at a time, whose death or hang ends the job and nothing else."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

MOST = 200
"""Jobs after which a process is replaced, so that what libraries keep in memory goes."""


class LostError(Exception):
    """A job's process died or hung."""


def _serve(work: Callable[[Any], Any], pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    while True:
        pipe.send(work(pipe.recv()))


class Worker:
    """A process; a new one is started after a death, a hang or many jobs.

    Args:
        work: What is done with a job; a function of a module. It handles its errors.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._process: Any = None
        self._pipe: Any = None
        self._done = 0

    def run(self, job: Any, limit: float) -> Any:
        """Return what becomes of a job.

        Args:
            job: What is given to the function.
            limit: For how many seconds.

        Raises:
            LostError: The process died or hung.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._work, other), daemon=True)
            self._process.start()
            other.close()
        try:
            self._pipe.send(job)
            if not self._pipe.poll(limit):
                raise LostError(f"hangs for {limit:g} s")
            result = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise LostError(f"dies with {code}") from None
        except LostError:
            self.close()
            raise
        self._done += 1
        if self._done % MOST == 0:
            self.close()
        return result

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def in_processes(
    work: Callable[[Any], Any], jobs: Sequence[Any], number: int, limit: float, lost: Callable[[Any, LostError], Any]
) -> Iterator[Any]:
    """Do jobs in several processes; yield what becomes of them as they end.

    Args:
        work: What is done with a job.
        jobs: What is given to it.
        number: How many processes.
        limit: Seconds for each job.
        lost: Says what becomes of a job whose process died or hung.
    """
    own, workers = threading.local(), []

    def one(job: Any) -> Any:
        if not hasattr(own, "worker"):
            own.worker = Worker(work)
            workers.append(own.worker)
        try:
            return own.worker.run(job, limit)
        except LostError as error:
            return lost(job, error)

    pool = ThreadPoolExecutor(number)
    try:
        yield from (future.result() for future in as_completed([pool.submit(one, job) for job in jobs]))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
