"""Reports how many parity checks ran on each backend, so that "0 ran" is seen, and where the time went."""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import traceback
from collections import Counter

import pytest

# Before OpenMP starts: pytest's workers share the cores. A thread that waits for one which another worker has displaced
# makes a test's time several times its processor time; tests of threads say how many they want. Threads that wait must
# sleep and not spin for 200 ms, under Intel's and under GNU's OpenMP.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

NUM_FILES_SHOWN = 25
PROCESSOR_SECONDS = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--op", help="only the tests that name this op, on every backend; `make test-op OP=swiglu`")
    parser.addoption("--full", action="store_true", help="the tests marked full too; `make test-full`")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Without the garbage collector, which would look at thousands of tests again and again; nor does it later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        keep(config, items, lambda item: item.get_closest_marker("full") is None)
    if (op := config.getoption("--op")) is not None:
        keep(config, items, naming(op))
    if getattr(config.option, "loadgroup", False):  # one of `make test`'s workers
        for item in items:
            name_group(item)


def name_group(item):
    """Writes the group of a test behind its name, by which xdist gives the group to one worker. xdist 3.8 writes to an
    attribute that pytest 9.2 does not read."""
    if (group := group_of(item)) is not None:
        item._id = item.id.parse(f"{item.nodeid}@{group}")


def group_of(item):
    """As its marker says, or its file where that makes something for several tests."""
    if (marker := item.get_closest_marker("xdist_group")) is not None:
        return marker.args[0]
    return item.parent.nodeid.removesuffix(".py").replace("/", ".") if shares_what_its_file_makes(item) else None


def shares_what_its_file_makes(item):
    """Whether it asks for a fixture that is made once for its file: one worker then runs the file's tests that do, and
    no other makes it again."""
    for *_, fixture in item._fixtureinfo.name2fixturedefs.values():
        if fixture.scope == "module" or (fixture.scope == "session" and fixture.baseid == item.parent.nodeid):
            return True
    return False


def keep(config, items, wanted):
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def naming(op):
    """`-k fused_linear` would take fused_linear_cross_entropy, too."""
    from fusionkit.ops import OP_NAMES

    if op not in OP_NAMES:
        raise pytest.UsageError(f"--op must be one of {', '.join(OP_NAMES)}, got {op!r}")
    longer = [name for name in OP_NAMES if op in name and name != op]
    return lambda item: op in re.sub("|".join(longer) or "$", "", item.nodeid)


def pytest_configure():
    """A shell ignores Ctrl-C for what it starts with `&`, and every process that is started from there inherits it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") == "loadgroup":
        from tests.scheduling import Scheduler

        return Scheduler(config, log)


def processor_seconds():
    """Of this process and of all that it started and has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A test's phase, and all that came between the phase before and this one, such as loading a framework."""
    report, now = (yield), processor_seconds()
    report.processor_seconds = now - item.config.stash.get(PROCESSOR_SECONDS, 0.0)
    item.config.stash[PROCESSOR_SECONDS] = now
    return report


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


@pytest.fixture(scope="session", autouse=True)
def traced_ops_note_a_short_stack():
    """Paddle notes the stack for each op that it traces; with pytest's 60 frames that took an eighth of test_parity,
    and with 10 frames a twelfth."""
    whole = traceback.extract_stack
    traceback.extract_stack = functools.partial(whole, limit=1)
    yield
    traceback.extract_stack = whole


@pytest.fixture(scope="session", autouse=True)
def references_are_kept():
    """The routes of a parity case follow each other."""
    from tests import kept_references

    end = kept_references.keep()
    yield
    end()


@pytest.fixture
def native():
    """The cpu backend's kernel library, with its settings put back afterwards."""
    from fusionkit_backends.cpu import runtime

    module = runtime.native()
    isa, threads = module.isa(), module.num_threads()
    yield module
    module.set_isa(isa)
    module.set_num_threads(threads)


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
    reports = [each for kind in terminalreporter.stats.values() for each in kind if isinstance(each, pytest.TestReport)]
    print_parity(terminalreporter, reports)
    print_shares_of_time(terminalreporter, reports)


def print_parity(terminal, reports):
    counts = Counter(
        value
        for report in reports
        if report.when == "call" and report.passed
        for name, value in report.user_properties
        if name == "parity"
    )
    terminal.section("parity checks passed")
    for route, count in sorted(counts.items()):
        terminal.line(f"{route}: {count}")
    if not counts:
        terminal.line("none ran")


def print_shares_of_time(terminal, reports):
    """Where a run's time goes, over all workers: the files that take most of it, and the longest test.

    Where a file's time is far above its processor time, it waits: for the other workers, a disk or a clock."""
    by_file, processor, by_test = Counter(), Counter(), Counter()
    for report in reports:
        file = report.nodeid.partition("::")[0]
        by_file[file] += report.duration
        processor[file] += getattr(report, "processor_seconds", 0.0)  # a crashed worker's test has none
        by_test[report.nodeid] += report.duration
    total = sum(by_file.values())
    terminal.section(f"shares of {total:.0f} s of tests, {sum(processor.values()):.0f} s of processor time")
    for file, seconds in by_file.most_common(NUM_FILES_SHOWN):
        terminal.line(f"{seconds / total:4.0%} {seconds:6.0f} s, {processor[file]:5.0f} s of processor time  {file}")
    for test, seconds in by_test.most_common(1):
        terminal.line(f"longest: {seconds:.0f} s  {test}")
