"""Signals: they wait, or they interrupt, and their handlers come back."""

import signal

import pytest

from onnx_net2net.model.signals import SIGNALS, caught_signals, deferred_signals


class StoppedError(Exception):
    """What a handler of the test raises."""


@pytest.fixture
def handlers():
    """Handlers that raise."""
    old = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(*_):
        raise StoppedError

    for number in SIGNALS:
        signal.signal(number, stop)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_deferred_signal_comes_when_the_work_is_done(handlers, number):
    done = []

    def work():
        with deferred_signals():
            signal.raise_signal(number)
            done.append(True)

    with pytest.raises(StoppedError):
        work()
    assert done == [True]


def test_caught_signals_are_counted_and_handlers_come_back(handlers):
    before = signal.getsignal(signal.SIGTERM)
    with caught_signals() as came:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_so(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with caught_signals() as came:
        signal.raise_signal(signal.SIGHUP)
    assert came == []


def test_a_reaction_may_interrupt(handlers):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), caught_signals(interrupt) as came:
        signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM]
