"""The counters of a rank's link."""

from __future__ import annotations

import time

import pytest
from fusionkit_bench.mc2 import traffic

DEV = """Inter-|   Receive                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     10 1 0 0 0 0 0 0       20 1 0 0 0 0 0 0
 link0:   {received} 3 0 0 0 0 0 0     {sent} 8 0 0 0 0 0 0
"""


def wait_until(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def test_counters_of_the_link_are_read(monkeypatch, tmp_path):
    counters = tmp_path / "dev"
    counters.write_text(DEV.format(received=300, sent=700))
    monkeypatch.setattr(traffic, "COUNTERS", counters)
    with traffic.sampled() as samples:
        assert wait_until(lambda: samples)
        (tmp_path / "later").write_text(DEV.format(received=400, sent=1700))
        (tmp_path / "later").replace(counters)
        assert wait_until(lambda: samples[-1][1:] == (1700, 400))
    assert samples[0][1:] == (700, 300) and samples[-1][1:] == (1700, 400)
    moved = [(b[0] - a[0], rate) for a, b, rate in zip(samples, samples[1:], traffic.rates(samples), strict=False)]
    assert sum(seconds * rate[1] for seconds, rate in moved) == pytest.approx(1000)
    assert sum(seconds * rate[2] for seconds, rate in moved) == pytest.approx(100)


def test_without_a_link_there_is_nothing(monkeypatch, tmp_path):
    (tmp_path / "dev").write_text("header\n")
    monkeypatch.setattr(traffic, "COUNTERS", tmp_path / "dev")
    with traffic.sampled() as samples:
        time.sleep(0.01)
    assert samples == [] and traffic.rates(samples) == []
