"""Pins: a Ctrl-C that some library has swallowed is raised at the next look; without one nothing is."""

from __future__ import annotations

import contextlib
import signal

import pytest

from orchestrator import interrupt


def test_a_lost_interrupt_is_raised_later() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt.listen()
        interrupt.check()
        with contextlib.suppress(KeyboardInterrupt):  # stands for the library
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    finally:
        interrupt._asked.clear()
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupt.listen()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
