"""What one step of a rehearsal gave to the device, as emulator/csrc/rehearsal/trace.h writes it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

SIDES = ("inputs", "outputs")
HEADER, WORDS = 4, 4  # int64 numbers of a file's header, int32 numbers of an event


class Kind(IntEnum):
    """Of an event; the numbers are those of trace.h."""

    KERNEL = 0
    CALL = 1
    RECORD = 2
    WAIT = 3
    SYNC_STREAM = 4
    SYNC_DEVICE = 5
    SYNC_EVENT = 6


@dataclass(frozen=True)
class Tensor:
    """element: bytes of one."""

    element: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.element * self.numel


@dataclass(frozen=True)
class Kernel:
    name: str
    of_pass: str
    line: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """A collective or a message.

    Args:
        op: such as "all_reduce"; "fused" inside a vendor's op.
        meeting: names the group, or the two of its ranks that exchange a message.
        size: ranks of the group.
        bytes: of this rank's part: what it gives to a gather, or takes from a reduce-scatter.
    """

    op: str
    meeting: str
    size: int
    bytes: int
    line: str

    @property
    def is_pair(self) -> bool:
        return self.op in ("send", "recv")


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one rank.

    Args:
        events: [number of events, 4], in the host's order: kind, what, stream, number.
        updates: kernels of the optimizer.
        lost: events that the record had no room for.
    """

    rank: int
    number: int
    updates: int
    lost: int
    definitions: tuple[Kernel | Call, ...]
    events: np.ndarray


def steps_of(folder: Path, process: int, rank: int) -> list[Step]:
    """The last steps of a process, at most two; those with an update where there are any, since one ends a step.

    None of a process that has given its device nothing, as a launcher.
    """
    described = folder / f"{process}.definitions"
    lines = described.read_text(errors="replace").splitlines() if described.exists() else []
    definitions = tuple(_definition(line) for line in lines)
    found = [_step(path, rank, definitions) for path in sorted(folder.glob(f"{process}.*.events"))]
    begun = [step for step in found if len(step.events)]
    return [step for step in begun if step.updates] or begun


def last_whole(processes: list[list[Step]]) -> list[Step]:
    """The last step that every rank has whole; none where there is no such step.

    Of processes with one rank, as of two programs in turn, the last one counts.
    """
    ranks = {own[0].rank: own for own in processes if own}
    common = set.intersection(*({step.number for step in own} for own in ranks.values())) if ranks else set()
    return [step for own in ranks.values() for step in own if common and step.number == max(common)]


def _step(path: Path, rank: int, definitions: tuple[Kernel | Call, ...]) -> Step:
    number, count, updates, lost = np.fromfile(path, np.int64, HEADER)
    events = np.fromfile(path, np.int32, int(count) * WORDS, offset=HEADER * 8).reshape(-1, WORDS)
    return Step(rank, int(number), int(updates), int(lost), definitions, events)


def _definition(line: str) -> Kernel | Call:
    found = json.loads(line)
    if "call" in found:
        return Call(found["call"], found["meeting"], found["size"], found["bytes"], found["line"])
    inputs, outputs = (tuple(Tensor(element, tuple(shape)) for element, *shape in found[side]) for side in SIDES)
    return Kernel(found["kernel"], found["pass"], found["line"], inputs, outputs)
