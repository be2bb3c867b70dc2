"""Runs the recorded step of all ranks again in simulated time: streams in order, collectives when all have come."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fusionkit_emulator import prices
from fusionkit_emulator.trace_record import Call, Kernel, Kind, Step
from fusionkit_planner.rates import Rates

AHEAD = 50_000  # pieces of work that a host is ahead of its device, at most: bounds memory
Mark = list[float]  # the time of a place in a stream, empty until it is known


@dataclass(frozen=True)
class Ran:
    """A kernel or a collective on a stream, in seconds from the step's begin.

    Args:
        came: when this rank was ready for it.
    """

    what: Kernel | Call
    stream: int
    came: float
    start: float
    end: float


@dataclass(eq=False)
class Meeting:
    """One collective or message, for all its ranks."""

    key: tuple[str, int]
    call: Call
    came: dict[int, float] = field(default_factory=dict)
    start: float = 0.0
    end: float | None = None

    @property
    def is_full(self) -> bool:
        return len(self.came) == (2 if self.call.is_pair else self.call.size)


@dataclass(eq=False)
class Batch:
    """Calls that a rank makes together."""

    calls: list[tuple[Call, Meeting]]
    issued: float
    came: float | None = None


@dataclass(frozen=True)
class Issued:
    kernel: int
    at: float


@dataclass(frozen=True)
class Put:
    mark: Mark


@dataclass(frozen=True)
class Await:
    mark: Mark


Work = Issued | Batch | Put | Await


@dataclass(eq=False)
class Stream:
    number: int
    free: float = 0.0
    queue: deque[Work] = field(default_factory=deque)


class Replay:
    """Of one step.

    Args:
        most: kernels of a rank that are kept one by one.
    """

    def __init__(self, steps: Sequence[Step], rates: Rates, most: int) -> None:
        self.rates, self.most = rates, most
        self.meetings: dict[tuple[str, int], Meeting] = {}  # that are open
        self.num_unmatched = 0  # calls without their peers' in this step
        self.ranks = [RankReplay(step, self) for step in steps]
        while not all([rank.has_ended() for rank in self.ranks]):
            if not any([rank.go() for rank in self.ranks]):
                self.close_first()
        self.seconds = max(rank.end for rank in self.ranks)

    def come(self, meeting: Meeting, rank: int, at: float) -> None:
        meeting.came[rank] = at
        if meeting.is_full:
            self.close(meeting)

    def close(self, meeting: Meeting) -> None:
        meeting.start = max(meeting.came.values())
        meeting.end = meeting.start + prices.of_call(meeting.call, list(meeting.came), self.rates)
        del self.meetings[meeting.key]

    def close_first(self) -> None:
        """Nobody can go on: a peer made the call in another step, or never."""
        self.num_unmatched += 1
        waiting = [meeting for meeting in self.meetings.values() if meeting.came]
        self.close(min(waiting, key=lambda meeting: max(meeting.came.values())))


class RankReplay:
    """One rank: its host issues work in the recorded order, its streams do it."""

    def __init__(self, step: Step, whole: Replay) -> None:
        self.step, self.whole, self.at, self.host = step, whole, 0, 0.0
        self.events = step.events
        self.streams: dict[int, Stream] = {}
        self.marks: dict[int, Mark] = {}
        self.awaited: list[Mark] = []  # by the host
        self.inside: list[tuple[Call, int]] = []  # of the vendor's op that comes next
        self.batch: list[tuple[Call, int, int]] = []
        self.priced: dict[int, tuple[float, prices.How]] = {}
        self.kernels: list[Ran] = []
        self.calls: list[Ran] = []
        self.busy: list[list[float]] = []  # (start, end) of kernels that follow each other
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of kernels, by how they are priced
        self.counts: Counter[str] = Counter()

    @property
    def end(self) -> float:
        return max([self.host, *(stream.free for stream in self.streams.values())])

    def has_ended(self) -> bool:
        return self.at == len(self.events) and not self.batch and not any(s.queue for s in self.streams.values())

    def go(self) -> bool:
        """As far as it can; whether that was any way at all."""
        moved = self.settle()
        while self.at < len(self.events) and self.may_issue():
            for event in self.events[self.at : self.at + 1024].tolist():
                self.at += 1
                self.issue(*event)
                if self.awaited and not self.may_issue():
                    break
            moved = True
        if self.at == len(self.events) and self.batch:
            self.join()
            moved = True
        return moved

    def settle(self) -> bool:
        """All streams, until none of them moves."""
        moved = False
        while any([self.advance(stream) for stream in self.streams.values()]):
            moved = True
        return moved

    def may_issue(self) -> bool:
        if not all(self.awaited):
            return False
        self.host = max([self.host, *(mark[0] for mark in self.awaited)])
        self.awaited = []
        return sum(len(stream.queue) for stream in self.streams.values()) < AHEAD

    def issue(self, kind: int, what: int, stream: int, number: int) -> None:
        if self.batch and not (kind == Kind.CALL and number < 0):
            self.join()
        if kind == Kind.KERNEL:
            self.host += self.whole.rates.launch_seconds
            self.issue_inside(what, stream)
            self.push(stream, Issued(what, self.host))
        elif kind == Kind.CALL:
            call = self.step.definitions[what]
            assert isinstance(call, Call)
            if stream < 0:
                self.inside.append((call, number))
            else:
                self.batch.append((call, abs(number) - (number < 0), stream))
        elif kind == Kind.RECORD:
            self.marks[what] = self.put(stream)
        elif kind == Kind.WAIT and what in self.marks:
            self.push(stream, Await(self.marks[what]))
        elif kind == Kind.SYNC_STREAM:
            self.awaited.append(self.put(stream))
        elif kind == Kind.SYNC_DEVICE:
            self.awaited += [self.put(each) for each in list(self.streams)]
        elif kind == Kind.SYNC_EVENT and what in self.marks:
            self.awaited.append(self.marks[what])

    def issue_inside(self, kernel: int, stream: int) -> None:
        """The collective of a vendor's op, before its product."""
        for call, number in self.inside:
            described = self.step.definitions[kernel]
            assert isinstance(described, Kernel)
            self.batch.append((prices.call_inside(call, described), number, stream))
            self.join()
        self.inside = []

    def join(self) -> None:
        """The calls made together, on the stream of the first; streams of others wait for it."""
        calls, self.batch = self.batch, []
        self.host += self.whole.rates.launch_seconds
        first = calls[0][2]
        others = {stream for _, _, stream in calls} - {first}
        for other in others:
            self.push(first, Await(self.put(other)))
        self.push(first, Batch([(call, self.meeting(call, number)) for call, number, _ in calls], self.host))
        for other in others:
            self.push(other, Await(self.put(first)))

    def meeting(self, call: Call, number: int) -> Meeting:
        key = (call.meeting, number)
        return self.whole.meetings.setdefault(key, Meeting(key, call))

    def put(self, stream: int) -> Mark:
        mark: Mark = []
        self.push(stream, Put(mark))
        return mark

    def push(self, number: int, work: Work) -> None:
        stream = self.streams.setdefault(number, Stream(number))
        stream.queue.append(work)
        self.advance(stream)

    def advance(self, stream: Stream) -> bool:
        moved = False
        while stream.queue and self.do(stream, stream.queue[0]):
            stream.queue.popleft()
            moved = True
        return moved

    def do(self, stream: Stream, work: Work) -> bool:
        """Whether it could be done."""
        if isinstance(work, Issued):
            self.compute(stream, work)
        elif isinstance(work, Batch):
            return self.communicate(stream, work)
        elif isinstance(work, Put):
            work.mark.append(stream.free)
        elif not work.mark:
            return False
        else:
            stream.free = max(stream.free, work.mark[0])
        return True

    def compute(self, stream: Stream, work: Issued) -> None:
        kernel = self.step.definitions[work.kernel]
        assert isinstance(kernel, Kernel)
        if work.kernel not in self.priced:
            self.priced[work.kernel] = prices.of_kernel(kernel, self.whole.rates)
        seconds, how = self.priced[work.kernel]
        self.seconds[how] += seconds
        self.counts[how] += 1
        start = max(stream.free, work.at)
        stream.free = start + seconds
        if seconds == 0.0:
            return
        if len(self.kernels) < self.whole.most:
            self.kernels.append(Ran(kernel, stream.number, start, start, stream.free))
        if self.busy and self.busy[-1][1] == start:
            self.busy[-1][1] = stream.free
        else:
            self.busy.append([start, stream.free])

    def communicate(self, stream: Stream, batch: Batch) -> bool:
        """Whether all have come to all of its calls."""
        if batch.came is None:
            batch.came = max(stream.free, batch.issued)
            for _, meeting in batch.calls:
                self.whole.come(meeting, self.step.rank, batch.came)
        ends = [meeting.end for _, meeting in batch.calls]
        stream_ends = [end for end in ends if end is not None]
        if len(stream_ends) < len(ends):
            return False
        for call, meeting in batch.calls:
            if meeting.end is not None and meeting.end > meeting.start:
                self.calls.append(Ran(call, stream.number, batch.came, meeting.start, meeting.end))
        stream.free = max(stream_ends)
        return True
