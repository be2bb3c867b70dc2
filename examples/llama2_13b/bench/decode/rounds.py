"""Interleaved rounds: in each, the memory is read and every contestant answers, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from examples.llama2_13b.bench.decode.contestant import Answer, Facts, Missing
from examples.llama2_13b.bench.decode.worker import Make, Worker

SETTLE_S = 0.3  # until threads that a runtime left spinning sleep: Intel's OpenMP keeps them awake for 200 ms
WARM_UP = 2  # steps of an answer that do not count
PASSES = 5  # over the memory that is read
LEFT_OUT = "left out: "


@dataclass(frozen=True)
class Work:
    """
    Args:
        prompts: of equal lengths; an answer of n rows has the first n.
        long_prompt: whose rate is that of prefill.
        rows: how many at a time.
        num_steps: that count.
    """

    prompts: list[list[int]]
    long_prompt: list[int]
    rows: list[int]
    num_steps: int


@dataclass(frozen=True)
class Turn:
    """What a contestant did in a round.

    Args:
        prefill_s: until the long prompt's first token, in seconds.
        steps_s: rows -> seconds of each step that counts.
        tokens: rows -> each row's answer.
        gb_per_s: at which the memory was read just before.
    """

    prefill_s: float
    steps_s: dict[int, list[float]]
    tokens: dict[int, list[list[int]]]
    gb_per_s: float


@dataclass
class Entry:
    """A contestant in the rounds.

    Args:
        name: for people.
        make: gives its process what it runs.
    """

    name: str
    make: Make
    facts: Facts | None = None
    peak_memory_gb: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    worker: Worker | None = None


def measure(
    entries: list[Entry], memory: Worker, work: Work, num_rounds: int, num_threads: int, is_alone: bool
) -> Iterator[str]:
    """Fill in the entries' turns; yields what has been done. Every other round goes through them backwards.

    Args:
        entries: one that cannot run here is taken out.
        is_alone: a contestant's process ends with its turn, so that one model at a time is in memory.
    """
    try:
        for number in range(num_rounds):
            for entry in list(entries)[:: -1 if number % 2 else 1]:
                try:
                    with _running(entry, work, num_threads, is_alone) as worker:
                        _take_turn(entry, worker, memory, work)
                    yield f"round {number + 1} of {num_rounds}: {entry.name}"
                except Missing as missing:
                    entries.remove(entry)
                    yield f"{LEFT_OUT}{missing}"
    finally:
        for entry in entries:
            _close(entry)


def _take_turn(entry: Entry, worker: Worker, memory: Worker, work: Work) -> None:
    time.sleep(SETTLE_S)
    gb_per_s = memory.ask("gb_per_s", PASSES)
    time.sleep(SETTLE_S)
    entry.turns.append(turn(worker, work, gb_per_s))
    entry.peak_memory_gb = max(entry.peak_memory_gb, worker.peak_memory_gb())


@contextmanager
def _running(entry: Entry, work: Work, num_threads: int, is_alone: bool) -> Iterator[Worker]:
    if entry.worker is None:
        entry.worker = Worker(entry.name, entry.make, num_threads)
        entry.facts = entry.worker.facts
        turn(entry.worker, Work(work.prompts, work.long_prompt, work.rows, 1), 0.0)  # lets lazy work happen
    yield entry.worker
    if is_alone:
        _close(entry)


def _close(entry: Entry) -> None:
    if entry.worker is not None:
        entry.worker.close()
        entry.worker = None


def turn(worker: Worker, work: Work, gb_per_s: float) -> Turn:
    prefill: Answer = worker.ask("answer", [work.long_prompt], 0)
    answers: dict[int, Answer] = {
        rows: worker.ask("answer", work.prompts[:rows], WARM_UP + work.num_steps) for rows in work.rows
    }
    return Turn(
        prefill.prefill_s,
        {rows: answer.steps_s[WARM_UP:] for rows, answer in answers.items()},
        {rows: answer.tokens for rows, answer in answers.items()},
        gb_per_s,
    )
