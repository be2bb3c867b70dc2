"""What the rounds come to: figures of each contestant, the table, and whether all did the same work."""

from __future__ import annotations

import datetime
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionkit_bench import processor

from examples.llama2_13b.bench.decode.rounds import Entry, Work

# Of the rows' first tokens, how many must be the first contestant's. Rounding changes some; another model nearly all.
LEAST_AGREED = 0.5


def tokens_per_s(entry: Entry, rows: int) -> list[float]:
    """Of each round: its median step's."""
    return [rows / statistics.median(turn.steps_s[rows]) for turn in entry.turns]


def prefill_per_s(entry: Entry, work: Work) -> list[float]:
    return [len(work.long_prompt) / turn.prefill_s for turn in entry.turns]


def share_of_bandwidth(entry: Entry) -> list[float] | None:
    """Of each round: bytes of weights that one row's steps read in a second, over those that were read before them."""
    if entry.facts is None or 1 not in entry.turns[0].steps_s:
        return None
    rates = zip(tokens_per_s(entry, 1), entry.turns, strict=True)
    return [entry.facts.bytes_a_step * rate / (1e9 * turn.gb_per_s) for rate, turn in rates]


def agreement(entry: Entry, other: Entry, rows: int) -> tuple[int, int]:
    """(tokens before the first that differs in each row, all tokens), of the first round's answers."""
    pairs = list(zip(entry.turns[0].tokens[rows], other.turns[0].tokens[rows], strict=True))
    return sum(common(*pair) for pair in pairs), sum(len(ours) for ours, _ in pairs)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of what both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


def others_work(entries: Sequence[Entry], rows: int) -> list[str]:
    """What is wrong: contestants whose rows mostly begin with other tokens than the first contestant's."""
    first, *others = entries
    wrong = []
    for entry in others:
        pairs = zip(entry.turns[0].tokens[rows], first.turns[0].tokens[rows], strict=True)
        agreed = sum(ours[0] == theirs[0] for ours, theirs in pairs)
        if agreed < LEAST_AGREED * rows:
            wrong.append(f"{entry.name} begins {agreed} of {rows} answers as {first.name} does: this is other work")
    return wrong


def table(entries: Sequence[Entry], work: Work) -> str:
    """In Markdown: medians over the rounds, then what each contestant is."""
    most = max(work.rows)
    head = ["", *(f"{rows} row{'s' * (rows > 1)}" for rows in work.rows), "of read bandwidth"]
    head += [f"prefill of {len(work.long_prompt)}", f"tokens as the first, {most} rows"]
    rows = []
    for entry in entries:
        cells = [entry.name, *(f"{statistics.median(tokens_per_s(entry, n)):.1f}" for n in work.rows)]
        shares = share_of_bandwidth(entry)
        cells += [f"{statistics.median(shares):.0%}" if shares else "", f"{_prefill(entry, work):.1f}"]
        agreed, whole = agreement(entry, entries[0], most)
        rows.append([*cells, f"{agreed} of {whole}"])
    facts = [["", "version", "kernels", "weights", "GB a step", "cache", "peak GB"]]
    for entry in entries:
        if entry.facts:
            each = entry.facts
            cells = [entry.name, each.version, each.kernels, each.weights, f"{each.bytes_a_step / 1e9:.3f}"]
            facts.append([*cells, each.cache, f"{entry.peak_memory_gb:.2f}"])
    return f"tokens/s\n\n{markdown([head, *rows])}\n\n{markdown(facts)}"


def _prefill(entry: Entry, work: Work) -> float:
    return statistics.median(prefill_per_s(entry, work))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
    return "\n".join([head, "| --- " * len(lines[0]) + "|", *rest])


def bandwidth(entries: Sequence[Entry]) -> list[float]:
    """GB/s of each reading."""
    return [turn.gb_per_s for entry in entries for turn in entry.turns]


def title(model: Path, entries: Sequence[Entry], num_threads: int) -> str:
    reads = bandwidth(entries)
    rounds = len(entries[0].turns)
    read = f"memory is read at {statistics.median(reads):.1f} GB/s ({min(reads):.1f} to {max(reads):.1f})"
    today = datetime.date.today().isoformat()
    return f"{model.name}; {processor.name()}, {num_threads} threads; {read}; {rounds} rounds; {today}"


def record(model: Path, entries: Sequence[Entry], work: Work, num_threads: int, left_out: Sequence[str]) -> Any:
    """Everything that was measured, for JSON."""
    return {
        "model": model.name,
        "processor": processor.name(),
        "num_threads": num_threads,
        "date": datetime.date.today().isoformat(),
        "left_out": list(left_out),
        "prompt_tokens": len(work.prompts[0]),
        "long_prompt_tokens": len(work.long_prompt),
        "contestants": {
            entry.name: {
                "facts": asdict(entry.facts) if entry.facts else None,
                "peak_memory_gb": entry.peak_memory_gb,
                "tokens_per_s": {rows: tokens_per_s(entry, rows) for rows in work.rows},
                "prefill_per_s": prefill_per_s(entry, work),
                "share_of_bandwidth": share_of_bandwidth(entry),
                "agreed_tokens": {rows: agreement(entry, entries[0], rows) for rows in work.rows},
                "turns": [asdict(turn) for turn in entry.turns],
            }
            for entry in entries
        },
    }
