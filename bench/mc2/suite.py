"""What one command measures: every case at every rate, or the grid; and what it found, also when interrupted."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionkit_bench import processor
from fusionkit_bench.mc2 import claim, grid, network, timeline
from fusionkit_bench.mc2 import run as runs
from fusionkit_bench.mc2.cases import BACKWARD, FORWARD, OPS, Case
from fusionkit_bench.mc2.measurement import Measurement
from tqdm import tqdm

from fusionkit.cores import for_processes

SWEEP_RATIO = 0.85  # c at the slowest link of a sweep


def machine() -> dict[str, Any]:
    return {
        "processor": processor.name(),
        "cores": for_processes().number,
        "kernel": platform.release(),
        "load before": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
    }


@dataclass
class Found:
    """Grows while the benchmark runs."""

    measurements: list[Measurement] = field(default_factory=list)
    judged: list[grid.Judged] = field(default_factory=list)
    panels: list[timeline.Panel] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine)
    shares_cores: bool = False
    shaped: bool = False

    @property
    def proven(self) -> bool:
        """Something was measured, and nothing forbids a claim."""
        something = bool(self.measurements or self.judged)
        fine = not any(claim.reasons(each) for each in self.measurements)
        alone = self.shaped and not self.shares_cores
        return something and fine and alone and not any(each.is_surely_below for each in self.judged)

    def title(self, options: argparse.Namespace) -> str:
        how = "sharing cores" if self.shares_cores else "with a core each"
        ranks = f"{options.ranks} ranks {how}, one thread each"
        link = "egress shaped" if self.shaped else "link not shaped"
        return f"{self.machine['processor']}, {ranks}, {link}, {options.rounds} rounds, {self.machine['date']}"


def run(options: argparse.Namespace, links: Sequence[str], cores: list[int], found: Found) -> None:
    found.shaped, found.shares_cores = bool(links), len(cores) < options.ranks
    first = min(links, key=network.bits_per_s) if links else None
    with runs.ranks(options.ranks, cores, first, options.backend) as ranks:
        if options.grid:
            measure_grid(options, ranks, found)
            return
        directions = options.direction or (FORWARD, BACKWARD)
        cases = runs.first_cases(options.what or OPS, directions, options.ranks, options.dtype, options.rows)
        if options.sweep and ranks.network is not None:
            cases = sized(ranks, cases, max(options.c, SWEEP_RATIO))
        wanted: list[str | None] = list(links) or [None]
        for link in wanted:
            if ranks.network is not None and link is not None:
                ranks.network.shape(link)
                ranks.all("forget")
                if not options.sweep:
                    cases = sized(ranks, cases, options.c)
            measure_cases(options, ranks, cases, link, found)


def sized(ranks: runs.Ranks, cases: Sequence[Case], ratio: float) -> list[Case]:
    """With sizes for a wanted c, which are printed."""
    chosen = []
    for case in tqdm(cases, desc=f"sizes for c = {ratio}", unit="case", leave=False):
        found = runs.choose_sizes(ranks, case, ratio)
        tqdm.write(f"{found} for c = {ratio}")
        chosen.append(found.case)
    return chosen


def measure_cases(
    options: argparse.Namespace, ranks: runs.Ranks, cases: Sequence[Case], link: str | None, found: Found
) -> None:
    with tqdm(total=len(cases) * options.rounds, unit="round", desc=link or "not shaped") as bar:
        for case in cases:
            found.measurements.append(runs.measure(ranks, case, link, options.rounds, bar.update))
            if options.timeline:
                found.panels.append(panel(ranks, case, link))


def panel(ranks: runs.Ranks, case: Case, link: str | None) -> timeline.Panel:
    rate = None if link is None else network.bits_per_s(link) / 8
    return timeline.Panel(f"{case.name}, {link or 'not shaped'}", ranks.all("record", case), rate)


def measure_grid(options: argparse.Namespace, ranks: runs.Ranks, found: Found) -> None:
    for case in tqdm(grid.cases(options.ranks, options.dtype), unit="shape"):
        found.judged.append(grid.judge(case, ranks.all("grid", case, options.rounds)))
