"""Interleaved rounds: in each, every contestant of every worker is timed once, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fusionkit_bench.contestants import PEAK, PRODUCT
from fusionkit_bench.result import Result
from fusionkit_bench.subject import Subject
from fusionkit_bench.worker import Key, Worker
from pytest_benchmark.stats import Stats

SETTLE_S = 0.25  # until threads that a runtime left spinning are asleep
BURST_S = 0.02  # a timing repeats its call for this long
BEATEN = 1.25  # a library whose first calls took so much longer than the best one's is no ceiling
SLOW_S, VERY_SLOW_S = 0.5, 2.0  # from here on 3 rounds are enough, and the first call


def measure(workers: Sequence[Worker], subject: Subject, rounds: int) -> Iterator[Result]:
    """A result for each state of the caches: warm, and cold where the subject asks for it."""
    for worker in workers:
        worker.prepare(subject)
    prepared = {worker: worker.prepared() for worker in workers}
    keys = {worker: own for worker, (own, _) in prepared.items()}
    costs = {way: subject.cost(prepared[workers[0]][1], way) for way in subject.directions}
    for cold in (False, True) if subject.benchmark.cold else (False,):
        first = timed_once(keys, {}, cold)  # lets lazy work happen
        quick = {w: [key for key in own if first[key] < SLOW_S] for w, own in keys.items()}
        first |= timed_once(quick, {}, cold)
        first = {key: seconds for key, seconds in first.items() if not is_beaten(key, first)}
        running = {w: [key for key in own if key in first] for w, own in keys.items()}
        numbers = {key: 1 if cold else max(1, round(BURST_S / seconds)) for key, seconds in first.items()}
        stats = {key: Stats() for key in first}
        for key, seconds in first.items():
            if rounds_of(key, seconds, rounds) == 0:
                stats[key].update(seconds)
        for turn in range(rounds):
            wanted = {
                w: [key for key in own if turn < rounds_of(key, first[key], rounds)] for w, own in running.items()
            }
            for key, seconds in timed_once(wanted, numbers, cold).items():
                stats[key].update(seconds)
        yield Result(subject, costs, cold, stats)


def is_beaten(key: Key, first: dict[Key, float]) -> bool:
    """A product, by another library's of the same direction."""
    name, direction = key
    if not name.startswith(PRODUCT):
        return False
    rivals = [seconds for (other, way), seconds in first.items() if way == direction and other.startswith(PRODUCT)]
    return first[key] > BEATEN * min(rivals)


def rounds_of(key: Key, seconds: float, rounds: int) -> int:
    if key[0].startswith(PEAK):
        return rounds  # a short call stands for all FLOPs of the op
    if seconds > VERY_SLOW_S:
        return 0
    return min(rounds, 3) if seconds > SLOW_S else rounds


def timed_once(keys: dict[Worker, list[Key]], numbers: dict[Key, int], cold: bool) -> dict[Key, float]:
    seen = {}
    for worker, own in keys.items():
        for key in own:
            if numbers.get(key, 1) > 1:
                worker.time(key, 1, False)  # back into the caches
            seen[key] = worker.time(key, numbers.get(key, 1), cold)
        if own and worker.kind.leaves_threads_spinning:
            time.sleep(SETTLE_S)
    return seen
