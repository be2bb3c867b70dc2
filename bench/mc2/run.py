"""The whole benchmark: ranks, their network, sizes, measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from fusionkit_bench.mc2.cases import Case, directions_of, first_guess
from fusionkit_bench.mc2.cores import core_of_each_rank
from fusionkit_bench.mc2.measurement import Measurement
from fusionkit_bench.mc2.network import Network, address
from fusionkit_bench.mc2.process import RankProcess, answers

CLOSE_ENOUGH = 0.1  # of the wanted c; then the sizes stay
TRIES = 3


def nothing() -> None:
    """For a caller that shows no progress."""


@dataclass(frozen=True)
class Ranks:
    """Processes that have joined one communicator; link is the rate of their egress, None where it is not shaped."""

    processes: Sequence[RankProcess]
    network: Network | None
    shares_cores: bool

    def all(self, request: str, *arguments: Any, progress: Callable[[], object] = nothing) -> list[Any]:
        """What each rank answers."""
        for process in self.processes:
            process.ask(request, *arguments)
        return answers(self.processes, progress)


@contextmanager
def ranks(world_size: int, cores: list[int], link: str | None, backend: str) -> Iterator[Ranks]:
    """Processes, on shaped links where `link` is given, in one communicator; nothing of them stays afterwards."""
    with ExitStack() as stack:
        processes = []
        for rank, core in enumerate(core_of_each_rank(world_size, cores)):
            processes.append(RankProcess(rank, world_size, core, link is not None))
            stack.callback(processes[-1].close)
        network = None
        if link is not None:
            network = Network([process.pid for process in processes], link)
            stack.callback(network.close)
        made = Ranks(processes, network, world_size > len(cores))
        join(made, backend)
        yield made


def join(made: Ranks, backend: str) -> None:
    if made.network is None:
        from fusionkit.parallel import unique_id

        made.all("join", backend, unique_id())
        return
    for rank, process in enumerate(made.processes):
        process.ask("join", backend, (address(0), address(rank)))
    answers(made.processes)


@dataclass(frozen=True)
class Sized:
    """A case whose sizes were chosen, and the rates by which they were: of one rank's product, and of what it sends."""

    case: Case
    flops_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        rates = f"{self.flops_per_s / 1e9:.0f} GFLOP/s, {8 * self.bytes_per_s / 1e6:.0f} Mbit/s out of each rank"
        return f"{self.case.name}: chosen at {rates}"


def choose_sizes(made: Ranks, case: Case, ratio: float) -> Sized:
    """Sizes at which c is about `ratio`, by the rates that the ranks measure at the sizes before."""
    for _ in range(TRIES):
        product_s, collective_s = (max(each) for each in zip(*made.all("probe", case), strict=True))
        rates = case.flops / product_s, case.bytes_sent / collective_s
        if abs(collective_s / product_s - ratio) <= CLOSE_ENOUGH * ratio:
            break
        case = case.with_ratio(ratio, *rates)
    return Sized(case, *rates)


def first_cases(ops: Sequence[str], directions: Sequence[str], world_size: int, dtype: str, rows: int) -> list[Case]:
    return [
        first_guess(op, direction, world_size, dtype, rows)
        for op in ops
        for direction in directions_of(op)
        if direction in directions
    ]


def measure(made: Ranks, case: Case, link: str | None, rounds: int, progress: Callable[[], object]) -> Measurement:
    """One case at the rate that the network has now."""
    return Measurement(case, link, made.shares_cores, made.all("measure", case, rounds, progress=progress))
