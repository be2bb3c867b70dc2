"""`fusionkit emulate --rehearse`: runs a command whose devices compute nothing, and tells what its processes found.

Each process keeps a file of JSON lines, emulator/csrc/rehearsal/record.h, which is there however the process ends, and
one of what its forward passes call, emulator/csrc/rehearsal/forward.cc.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit_emulator import environment, stages, timeline
from fusionkit_emulator.child import exit_status, hand_signals_to
from fusionkit_planner.rates import Rates

from fusionkit.rehearsal import NOTE, VARIABLE

# Lines of a file, in the order of emulator/csrc/rehearsal/record.h.
SLOTS = ("process", "peak", "calls", "failure", "reads", "counts")
PARTS = ("parameters", "optimizer", "gradients", "forward", "backward", "update", "other")
SHOWN = 5  # lines of code that hold most, and that read most
HEARSAY = "another rank failed"  # how the communicator begins what another rank has told it
Run = Callable[[Sequence[str], Mapping[str, str]], int]


@dataclass(frozen=True)
class Rank:
    """What one process found; each field is a slot of its file, empty where it has not come so far.

    Args:
        forward: how often its forward passes call each kernel, by line of code.
    """

    process: dict[str, Any]
    peak: dict[str, Any]
    calls: dict[str, Any]
    failure: dict[str, Any]
    reads: dict[str, Any]
    counts: dict[str, Any]
    forward: stages.Counts = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Rank:
        lines = path.read_text(errors="replace").splitlines()
        filled = zip(SLOTS, [*lines, *[""] * len(SLOTS)], strict=False)
        slots = {name: _parsed(line) for name, line in filled}
        return cls(**slots, forward=stages.read(path.with_suffix(".forward")))

    @property
    def number(self) -> int:
        return int(self.process["rank"])


def _parsed(line: str) -> dict[str, Any]:
    """Empty where a process was killed while it wrote."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return found


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    run_command: Run,
    output: str | None,
    trace: str | None = None,
    rates: Rates | None = None,
    is_uneven: bool = False,
) -> int:
    """Run the command and print the report to stderr, and to the file `output` as JSON.

    Args:
        trace: the file of the timeline, which is priced by `rates`.
        is_uneven: stages are meant to have unequal numbers of layers.

    Returns:
        The command's exit status. 1 where it is 0 and the rehearsal found a failure, or met no device.
    """
    with tempfile.TemporaryDirectory(prefix="fusionkit-rehearsal-") as folder:
        record = {VARIABLE: "1", f"{environment.PREFIX}REHEARSE": "1", f"{environment.PREFIX}RECORD": folder}
        record[f"{environment.PREFIX}TRACE"] = str(int(trace is not None))
        status = run_command(command, {**variables, **record})
        ranks = ranks_of(Path(folder))
        unequal = [] if is_uneven or status else unequal_stages(ranks)
        print("\n".join([*report(ranks, status), *unequal]), file=sys.stderr)
        if trace is not None and rates is not None and ranks:
            processes = [(rank.process["pid"], rank.number) for rank in ranks]
            print("\n".join(timeline.write(trace, Path(folder), processes, rates)), file=sys.stderr)
    if output is not None:
        Path(output).write_text(json.dumps(as_json(ranks, status, unequal), indent=1) + "\n")
    failed = not ranks or bool(unequal) or any(rank.failure for rank in ranks)
    return status or int(failed)


def passed_through(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command with this process's streams; its exit status, 128 + N after signal N."""
    with subprocess.Popen(command, env=variables) as process:
        hand_signals_to(process)
        process.wait()
    return exit_status(process)


def ranks_of(folder: Path) -> list[Rank]:
    """Of all processes that used a device, in the order of their ranks."""
    found = [Rank.read(path) for path in folder.glob("*.jsonl")]
    return sorted((rank for rank in found if rank.process), key=lambda rank: (rank.number, rank.process["pid"]))


def as_json(ranks: Sequence[Rank], status: int, unequal: Sequence[str]) -> dict[str, Any]:
    return {"note": NOTE, "status": status, "unequal_stages": unequal, "ranks": [vars(rank) for rank in ranks]}


def unequal_stages(ranks: Sequence[Rank]) -> list[str]:
    """Lines; none where a rank failed, and has not done all of its work."""
    if any(rank.failure for rank in ranks):
        return []
    return list(stages.unequal([(rank.number, rank.forward) for rank in ranks]))


def report(ranks: Sequence[Rank], status: int) -> Iterator[str]:
    yield f"fusionkit: {NOTE}"
    if not ranks:
        yield (
            "no process used an emulated device, so whatever the command did it did for real. Have it use them: "
            "leave out --device cpu, or call paddle.set_device"
        )
        return
    yield from memory(ranks)
    yield from reads(ranks)
    yield from failures(ranks)
    if status and not any(rank.failure for rank in ranks):
        yield f"the command ended with status {status}; its own message says why"


def memory(ranks: Sequence[Rank]) -> Iterator[str]:
    """A table of peaks, and what holds most on the rank that needs most."""
    peaks = [rank for rank in ranks if rank.peak and rank.counts]
    if not peaks:
        return
    yield "peak memory by rank, GiB: what Paddle has allocated, by what made it"
    yield "   rank    peak  reserved  " + "  ".join(f"{part:>10}" for part in PARTS) + "  when"
    for rank in peaks:
        peak = rank.peak
        parts = "  ".join(f"{_gib(peak['parts'][part]):>10}" for part in PARTS)
        yield f"{rank.number:7}  {_gib(peak['bytes']):>6}  {_gib(peak['reserved']):>8}  {parts}  {_when(rank)}"
    if any(_is_of_one_step(rank) for rank in peaks):
        yield "the optimizer's state came with the only update: two steps show the peak of a run"
    most = max(peaks, key=lambda rank: int(rank.peak["bytes"]))
    yield f"rank {most.number} needs most, in {most.peak['kernel']} of {_at(most.peak['line'])}; held then, GiB:"
    for one in most.peak["largest"][:SHOWN]:
        yield f"{_gib(one['bytes']):>9}  {one['part']}, by {one['kernel']} of {_at(one['line'])}"


def _is_of_one_step(rank: Rank) -> bool:
    peak = rank.peak
    return bool(rank.counts["steps_begun"] == 2 and peak["step"] == 1 and peak["parts"]["optimizer"] == 0)


def _when(rank: Rank) -> str:
    """Of the kernels of the step, those up to the peak."""
    peak, counts = rank.peak, rank.counts
    total = peak["kernels_of_step"] or counts["kernels_of_step"]
    share = f", {peak['kernel_of_step']} of {total} kernels" if total else ""
    return f"step {peak['step']}, {peak['pass']}{share}"


def reads(ranks: Sequence[Rank]) -> Iterator[str]:
    """The lines of the first rank that read values: each number was 1."""
    lines = ranks[0].reads.get("lines", [])
    if not lines:
        return
    yield f"values that rank {ranks[0].number} read on the host: numbers 1.0, flags as if all were finite"
    for one in sorted(lines, key=lambda line: -int(line["bytes"]))[:SHOWN]:
        yield f"{one['count']:9} times, {one['bytes']} bytes at {_at(one['line'])}"


def failures(ranks: Sequence[Rank]) -> Iterator[str]:
    told: dict[str, int] = {}  # and the first rank that tells it
    for rank in ranks:
        if rank.failure.get("kind") == "memory":
            yield from _out_of_memory(rank)
        elif rank.failure:
            told.setdefault(rank.failure["text"], rank.number)
    first_hand = {text: rank for text, rank in told.items() if not text.startswith(HEARSAY)}
    for text, rank_number in (first_hand or told).items():
        yield f"FOUND on rank {rank_number}: {text}"
    if told:
        yield "where the ranks were:"
        for rank in ranks:
            yield f"  rank {rank.number}: {_place(rank)}"


def _out_of_memory(rank: Rank) -> Iterator[str]:
    found = rank.failure
    yield (
        f"FOUND on rank {rank.number}: out of memory. {_gib(found['asked'])} GiB more were asked for by "
        f"{_at(found['line'])}; {_gib(found['reserved'])} of {_gib(found['limit'])} GiB are taken, GiB:"
    )
    for one in found["largest"][:SHOWN]:
        yield f"{_gib(one['bytes']):>9}  {one['part']}, by {one['kernel']} of {_at(one['line'])}"
    yield (
        "Divide the model further, compute more again, or take fewer rows at a time; --memory says what a device has"
    )


def _place(rank: Rank) -> str:
    calls = rank.calls
    if not calls:
        return "before its first collective"
    if calls["waits"]:
        return "in " + "; ".join(calls["waits"])
    return f"after {calls['calls']} collectives, the last of them {calls['last']}"


def _at(line: str) -> str:
    return line or "no Python code"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}"
