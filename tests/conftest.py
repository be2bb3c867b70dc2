"""Reports how many parity checks ran on each backend, so that "0 ran" is seen."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

# Before OpenMP starts: pytest's workers share the cores, so threads that wait must sleep and not spin for 200 ms.
os.environ.setdefault("KMP_BLOCKTIME", "0")


def pytest_configure():
    """A shell ignores Ctrl-C for what it starts with `&`, and every process that is started from there inherits it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def traced_functions_stay_alive():
    """Paddle 3.3.1 may crash while it traces after another traced function was freed; see frameworks/paddle.py."""
    from paddle.jit.dy2static.program_translator import StaticFunction

    kept, make = [], StaticFunction.__init__

    def make_and_keep(self, *args, **kwargs):
        kept.append(self)
        make(self, *args, **kwargs)

    StaticFunction.__init__ = make_and_keep
    yield
    StaticFunction.__init__ = make


@pytest.fixture
def parity_of(record_property):
    """Names the backend that a parity check proves."""
    return lambda backend, route: record_property("parity", f"{backend} through {route}")


@pytest.fixture(autouse=True)
def fresh_ledger():
    """Each test counts from zero."""
    import fusionkit as fk

    fk.ledger().reset()
    yield
    fk.ledger().reset()


def pytest_terminal_summary(terminalreporter):
    counts = Counter(
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "parity"
    )
    terminalreporter.section("parity checks passed")
    for route, count in sorted(counts.items()):
        terminalreporter.line(f"{route}: {count}")
    if not counts:
        terminalreporter.line("none ran")
