"""`--trace`: the step of a rehearsal as a Chrome trace, and in words. Simulated: a step that was recorded, at rates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit_emulator import trace_record
from fusionkit_emulator.replay import Ran, RankReplay, Replay
from fusionkit_emulator.trace_record import Call, Step
from fusionkit_planner.rates import Rates

MOST = 20_000  # events of a rank in the file
# What a moment of a rank is, the first that holds: a kernel runs; a collective moves; peers have not come, or are not
# done; the host has given the device nothing.
PARTS = ("compute", "exposed communication", "waiting", "host")
WHOLE, COMPUTE, COMMUNICATION = 1, 100, 200  # lanes; the last two begin one for each stream
TITLE = "simulated step, nothing was measured"
NAMED = {"peak_flops": "products", "attention_flops": "attention", "memory_bandwidth": "memory", "levels": "links"}


@dataclass(frozen=True)
class Segment:
    start: float
    end: float
    part: str


def segments(rank: RankReplay, seconds: float) -> list[Segment]:
    """The whole step without gaps, as what is the most important at each moment."""
    changes = [(at, 0, way) for span in rank.busy for at, way in zip(span, (1, -1), strict=True)]
    for call in rank.calls:
        changes += [(call.start, 1, 1), (call.end, 1, -1), (call.came, 2, 1), (call.start, 2, -1)]
    changes += [(rank.end, 2, 1), (seconds, 2, -1)]
    made: list[Segment] = []
    running, before = [0, 0, 0], 0.0
    for at, part, way in sorted(changes):
        if at > before:
            now = PARTS[next((i for i, count in enumerate(running) if count > 0), 3)]
            if made and made[-1].part == now:
                made[-1] = Segment(made[-1].start, at, now)
            else:
                made.append(Segment(before, at, now))
            before = at
        running[part] += way
    return made


def parts_of(rank: RankReplay, seconds: float) -> dict[str, float]:
    """Seconds of each part; they add up to the step."""
    found = dict.fromkeys(PARTS, 0.0)
    for each in segments(rank, seconds):
        found[each.part] += each.end - each.start
    return found


def write(path: str, folder: Path, processes: Sequence[tuple[int, int]], rates: Rates) -> Iterator[str]:
    """Write the trace, and say in words what it shows.

    Args:
        folder: of the records.
        processes: (process id, rank).
    """
    steps = trace_record.last_whole([trace_record.steps_of(folder, process, rank) for process, rank in processes])
    if not steps:
        yield f"no timeline: no step was recorded by all ranks, so {path} was not written"
        return
    replay = Replay(steps, rates, MOST)
    events, told = [], list(summary(replay, steps, rates))
    for rank in replay.ranks:
        own = sorted(_events(rank, replay.seconds), key=lambda event: float(event["ts"]))
        if len(own) > MOST:
            until = own[MOST]["ts"] * 1e-6
            told.append(f"rank {rank.step.rank}: {path} is cut after {MOST} events, at {_shown(until)}")
        events += [*_names(rank), *own[:MOST]]
    other = {"title": TITLE, "rates": rates.name, "sources": dict(rates.sources), "summary": told}
    Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}) + "\n")
    yield from told


def _events(rank: RankReplay, seconds: float) -> Iterator[dict[str, Any]]:
    pid = rank.step.rank
    for each in segments(rank, seconds):
        yield _event(each.part, pid, WHOLE, each.start, each.end, {})
    for kernel in rank.kernels:
        yield _kernel(kernel, rank)
    for call in rank.calls:
        args = {"bytes": call.what.bytes, "line": call.what.line} if isinstance(call.what, Call) else {}
        name = call.what.op if isinstance(call.what, Call) else call.what.name
        if call.start > call.came:
            yield _event(f"waits: {name}", pid, COMMUNICATION + call.stream, call.came, call.start, args)
        yield _event(name, pid, COMMUNICATION + call.stream, call.start, call.end, args)


def _kernel(ran: Ran, rank: RankReplay) -> dict[str, Any]:
    assert isinstance(ran.what, trace_record.Kernel)
    what = ran.what
    args = {
        "pass": what.of_pass,
        "line": what.line,
        "inputs": [list(tensor.shape) for tensor in what.inputs],
        "outputs": [list(tensor.shape) for tensor in what.outputs],
    }
    return _event(what.name, rank.step.rank, COMPUTE + ran.stream, ran.start, ran.end, args)


def _event(name: str, pid: int, tid: int, start: float, end: float, args: dict[str, Any]) -> dict[str, Any]:
    """In microseconds, as the format wants."""
    times = {"ts": start * 1e6, "dur": (end - start) * 1e6}
    return {"name": name, "ph": "X", **times, "pid": pid, "tid": tid, "args": args}


def _names(rank: RankReplay) -> Iterator[dict[str, Any]]:
    pid = rank.step.rank
    lanes = {WHOLE: "step"}
    lanes |= {COMPUTE + each.stream: "compute" for each in rank.kernels}
    lanes |= {COMMUNICATION + each.stream: "communication" for each in rank.calls}
    about = {"ph": "M", "ts": 0, "dur": 0, "pid": pid}
    yield {**about, "name": "process_name", "tid": 0, "args": {"name": f"rank {pid} ({TITLE})"}}
    for tid, name in lanes.items():
        yield {**about, "name": "thread_name", "tid": tid, "args": {"name": name}}


def summary(replay: Replay, steps: Sequence[Step], rates: Rates) -> Iterator[str]:
    """Of the whole step, also where the file is cut."""
    yield f"{TITLE}: step {steps[0].number} at the rates of {rates.name} takes {_shown(replay.seconds)}"
    if not all(step.updates for step in steps):
        yield "no optimizer ran, so everything that ran is taken for one step"
    elif steps[0].number == 1:
        yield "it is the first step, so it holds what came before training too; take two steps"
    yield "   rank  " + "  ".join(f"{part:>22}" for part in PARTS)
    for rank in replay.ranks:
        parts = parts_of(rank, replay.seconds)
        shares = (f"{_shown(parts[part])} {100 * parts[part] / max(replay.seconds, 1e-30):3.0f}%" for part in PARTS)
        yield f"{rank.step.rank:7}  " + "  ".join(f"{share:>22}" for share in shares)
    yield from _priced(replay.ranks)
    lost = sum(step.lost for step in steps)
    if lost:
        yield f"{lost} events were lost: a step has more than the record holds, so it takes longer than this"
    if replay.num_unmatched:
        yield f"{replay.num_unmatched} calls had no partner within the step; they begin without"
    sources: dict[str, list[str]] = {}
    for name, shown in NAMED.items():
        sources.setdefault(_source(name, rates), []).append(shown)
    for source, names in sources.items():
        yield f"rate of {', '.join(names)}: {source}"


def _priced(ranks: Sequence[RankReplay]) -> Iterator[str]:
    busiest = max(ranks, key=lambda rank: sum(rank.seconds.values()))
    by = ", ".join(f"{how} {_shown(seconds)}" for how, seconds in busiest.seconds.items() if how != "unknown")
    yield f"kernels of rank {busiest.step.rank}, the busiest: {by}"
    unknown = busiest.counts["unknown"]
    if unknown:
        seconds = _shown(busiest.seconds["unknown"])
        yield f"the cost of {unknown} kernels is unknown: they are priced by their bytes, {seconds}"


def _source(name: str, rates: Rates) -> str:
    if name == "attention_flops" and rates.attention_flops is None:
        return "that of products: none was measured"
    return rates.sources.get(name, "no source is stated")


def _shown(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.3f} ms"
