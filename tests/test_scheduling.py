"""The scheduler gives each test once, to the worker that xdist's own would give it to. What a file makes, one makes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadGroupScheduling

from tests.conftest import group_of, shares_what_its_file_makes
from tests.scheduling import Scheduler

TESTS = [f"tests/test_beads.py::test_beads[{number}]" for number in range(40)]
TESTS += [f"tests/test_gems.py::test_gems[{number}]@gems" for number in range(5)]
TESTS += [f"tests/test_beads.py::test_more_beads[{number}]" for number in range(40)]


class Worker:
    def __init__(self, name):
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.waiting, self.done = [], []

    def send_runtest_some(self, numbers):
        self.waiting += numbers

    def shutdown(self):
        self.shutting_down = True


def started(kind):
    """A scheduler of two workers, which have their first tests."""
    tx = ["popen", "popen"]
    config = SimpleNamespace(getvalue=lambda name: tx, option=SimpleNamespace(loadscopereorder=True))
    scheduler = kind(config, Producer("tests", enabled=False))
    workers = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, list(TESTS))
    scheduler.schedule()
    return scheduler, workers


def complete(scheduler, worker):
    worker.done.append(worker.waiting.pop(0))
    scheduler.mark_test_complete(worker, worker.done[-1])


def run(kind, dies_after=None):
    """What each of two workers has done: the second takes two tests in the time of the first's one, and may die."""
    scheduler, (slow, fast) = started(kind)
    while slow.waiting or fast.waiting:
        for worker in (fast, slow, fast):
            if worker.waiting:
                complete(scheduler, worker)
            if worker is fast and len(fast.done) == dies_after:
                lost = fast.waiting[0]
                assert scheduler.remove_node(fast) == TESTS[lost]
                return slow.done, fast.done, lost, scheduler
    assert scheduler.tests_finished and not scheduler.has_pending
    return slow.done, fast.done


def test_each_worker_has_the_tests_of_xdists_own_scheduler():
    slow, fast = run(Scheduler)
    assert (slow, fast) == run(LoadGroupScheduling)
    assert sorted(slow + fast) == list(range(len(TESTS))) and len(fast) > len(slow) > 0
    gems = {number for number, name in enumerate(TESTS) if name.endswith("@gems")}
    assert gems <= set(slow) or gems <= set(fast)


def test_what_a_worker_has_done_is_forgotten():
    scheduler, (worker, _) = started(Scheduler)
    while scheduler.workqueue:
        complete(scheduler, worker)
        assert len(scheduler.assigned_work[worker]) <= 3


@pytest.mark.parametrize("dies_after", [1, 7, 20])
def test_the_tests_of_a_worker_that_dies_go_to_the_other(dies_after):
    done, before, lost, scheduler = run(Scheduler, dies_after)
    left = {name for unit in scheduler.workqueue.values() for name, is_done in unit.items() if not is_done}
    given = {name for unit in scheduler.assigned_work.values() for group in unit.values() for name in group}
    assert set(TESTS) <= {TESTS[number] for number in done + before} | left | given
    assert TESTS[lost] in left | given


@pytest.fixture(scope="module")
def made_once():
    return object()


def test_tests_that_share_what_their_file_makes_are_one_group(made_once, request):
    assert group_of(request.node) == "tests.test_scheduling"
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@tests.test_scheduling")


@pytest.mark.xdist_group("beads")
def test_a_marker_names_the_group(made_once, request):
    assert group_of(request.node) == "beads"
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@beads")


@pytest.mark.parametrize(
    ("scope", "base", "is_shared"),
    [
        ("module", "tests/test_beads.py", True),
        ("module", "tests", True),
        ("session", "tests/test_beads.py", True),
        ("session", "tests", False),
        ("function", "tests/test_beads.py", False),
    ],
)
def test_a_file_shares_what_lives_longer_than_a_test_and_belongs_to_it(scope, base, is_shared):
    fixture = SimpleNamespace(scope=scope, baseid=base)
    asks = SimpleNamespace(name2fixturedefs={"beads": (fixture,)})
    assert (
        shares_what_its_file_makes(
            SimpleNamespace(_fixtureinfo=asks, parent=SimpleNamespace(nodeid="tests/test_beads.py"))
        )
        is is_shared
    )
