"""Rounds, sizes, the watch over what ran, and the pictures."""

from __future__ import annotations

import threading
import time

import pytest
from fusionkit_bench.mc2 import chart, protocol, threads, timeline
from fusionkit_bench.mc2.cases import OPS, Case, directions_of, first_guess
from fusionkit_bench.mc2.contestants import computes_first, in_turn, serially
from fusionkit_bench.mc2.cores import core_of_each_rank
from fusionkit_bench.mc2.timeline import Recorded

import fusionkit
from tests.bench_mc2.made_up import measured


def test_rounds_are_interleaved_and_begin_together():
    said = []
    calls = {name: lambda name=name: said.append(name) for name in "abc"}
    seconds = protocol.run(calls, lambda: said.append("|"), 3, {}, lambda: said.append("/"))
    warm_up, *rounds = "".join(said).replace("|a|b|c", "|a|b|c/", 1).rstrip("/").split("/")
    assert warm_up == "|a|b|c" and len(rounds) == 3
    assert all(sorted(each) == sorted("|a|b|c") and each[::2] == "|||" for each in rounds)
    assert len({protocol.shuffled("abc", number)[0] for number in range(15)}) == 3  # each comes first now and then
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_only_the_call_is_timed(monkeypatch):
    """By a clock that goes on only where something takes time: the watch 7 s each, the barrier 5, the call 1."""
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    class Watch:
        begin = end = staticmethod(takes(7))

    monkeypatch.setattr(protocol.time, "perf_counter", lambda: now[0])
    assert protocol.timed(takes(1), takes(5), Watch()) == 1 and now == [20]


def test_the_watch_sees_the_ledger_of_its_contestant_alone():
    count = fusionkit.ledger().counter
    calls = {
        "fused": lambda: count("op", "cpu", "chosen").add(),
        "serial": lambda: count("op", "cpu", "serial: few rows").add(),
    }
    watch = protocol.Watch()
    protocol.run(calls, lambda: None, 4, {"fused": watch})
    assert watch.ran == {("op", "cpu", "chosen"): 4} and len(watch.stolen) == 4


def test_processor_time_of_other_threads_is_seen_and_the_callers_is_not():
    """The other one computes for 0.2 s of its own time, and stays until it was looked at."""
    done, looked_at = threading.Event(), threading.Event()

    def compute():
        while time.thread_time() < 0.2:
            pass
        done.set()
        looked_at.wait()

    before = threads.cpu_seconds_of_others()
    thread = threading.Thread(target=compute)
    thread.start()
    done.wait()
    after = threads.cpu_seconds_of_others()
    looked_at.set()
    thread.join()
    assert str(threading.get_native_id()) not in after
    assert after[str(thread.native_id)] == pytest.approx(0.2, abs=0.05)
    assert threads.spent(before, after) >= 0.15
    assert threads.spent({"1": 0.5, "2": 1.0}, {"2": 1.25, "3": 0.5}) == 0.75


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", OPS)
def test_sizes_give_the_wanted_ratio(op, direction):
    """c = (bytes sent / 25 MB/s) / (FLOPs / 90 GFLOP/s), within the rounding to a multiple of 64."""
    case = first_guess(op, direction, 2, "bfloat16", 1280).with_ratio(0.6, 90e9, 25e6)
    assert case.bytes_sent / 25e6 / (case.flops / 90e9) == pytest.approx(0.6, rel=0.05)
    assert case.M == 2560


def test_flops_and_bytes_by_hand():
    case = Case("all_gather_matmul", "forward", 4, 400, 10, 3, "bfloat16")
    assert case.flops == 2 * 400 * 10 * 3 and case.bytes_sent == 3 * 100 * 10 * 2
    case = Case("matmul_reduce_scatter", "backward", 4, 400, 10, 3, "float32")
    assert case.flops == 4 * 400 * 10 * 3 and case.bytes_sent == 3 * 100 * 3 * 4
    case = Case("matmul_all_reduce", "forward", 4, 400, 10, 3, "float32")
    assert case.bytes_sent == 2 * 3 * 100 * 3 * 4
    assert directions_of("matmul_all_reduce") == ("forward",)


def test_gathers_come_before_products_and_reductions_after():
    order = {(op, way): computes_first(Case(op, way, 2, 4, 4, 4, "float32")) for op in OPS for way in directions_of(op)}
    assert order == {
        ("all_gather_matmul", "forward"): False,
        ("all_gather_matmul", "backward"): True,
        ("matmul_reduce_scatter", "forward"): True,
        ("matmul_reduce_scatter", "backward"): False,
        ("matmul_all_reduce", "forward"): True,
    }
    said = []
    in_turn(lambda: said.append(1), lambda: said.append(2))()
    assert said == [1, 2]


def test_the_negative_control_runs_the_op_with_overlap_off():
    class Device:
        on = True

        def serially(self):
            from contextlib import contextmanager

            @contextmanager
            def off():
                self.on = False
                yield
                self.on = True

            return off()

    device, seen = Device(), []
    serially(lambda: seen.append(device.on), device)()
    assert seen == [False] and device.on


def test_ranks_share_cores_only_when_there_are_too_few():
    assert core_of_each_rank(2, [0, 2, 4]) == [0, 2]
    assert core_of_each_rank(3, [0, 2]) == [0, 2, 0]


def test_pictures_are_drawn(tmp_path):
    ranks = [
        Recorded([("compute", "own", 1.0, 1.5), ("wait", "wait", 1.5, 2.0)], [(1.0, 0, 0), (1.1, 500, 0)]),
        Recorded([], []),
    ]
    timeline.draw(
        tmp_path / "timeline.png",
        [timeline.Panel("one call", ranks, 25e6), timeline.Panel("another", ranks[1:], None)],
        "made up",
    )
    chart.draw(tmp_path / "chart.png", [measured(), measured(collective=0.2, serial=0.6, control=None)], "made up")
    for name in ("timeline.png", "chart.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert timeline.computing(ranks) == "50%, 0%"
