"""Runs plans one after the other, each for some steps, and loses none of what was measured before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fusionkit_planner import sft_flags
from fusionkit_planner.dominance import listed
from fusionkit_planner.search import Answer, Plan, Question
from fusionkit_planner.verify import reading
from fusionkit_planner.verify.commands import Launch, report_of
from fusionkit_planner.verify.material import available_bytes, is_complete, write_data, write_model
from fusionkit_planner.verify.measured import Measured, Verified, verified
from fusionkit_planner.verify.place import CPU
from fusionkit_planner.verify.processes import Running, Stopped, interruptible

from fusionkit.errors import FusionkitError

PREFIX = "fusionkit-verify-"
PROCESS_BYTES = 0.5e9  # of Python, Paddle and the example, beside tensors
Watch = Callable[[int, Plan, int], None]  # (place among the runs, the plan, steps done)
Tell = Callable[[Measured], None]


@dataclass(frozen=True)
class Wanted:
    """Args:
    model: as the user named it, a folder or a config.json.
    data: a folder of the user; None for random words.
    entry: the training command.
    steps: of each run.
    limit: seconds of each run.
    """

    model: Path
    data: Path | None
    entry: Path
    launch: Launch
    steps: int
    limit: float


def chosen(plans: Sequence[Plan], count: int, of_each_way: bool = False, apart: float = 0.0) -> list[tuple[Plan, int]]:
    """(plan, its place from 1) of the best that are listed; with another rule, of all.

    Args:
        of_each_way: the best of each way to divide devices alone.
        apart: by which share a plan is at least slower than the one before.
    """
    found: list[tuple[Plan, int]] = []
    ways = set()
    for place, plan in enumerate(plans) if of_each_way or apart else listed(plans, count):
        one = plan.layout
        way = (one.tensor, one.pipeline, one.data, one.sharding, one.stage) if of_each_way else place
        is_far = not found or plan.time.seconds >= (1 + apart) * found[-1][0].time.seconds
        if way not in ways and is_far and len(found) < count:
            found.append((plan, place + 1))
        ways.add(way)
    return found


def verify(answer: Answer, runs: Sequence[tuple[Plan, int]], wanted: Wanted, watch: Watch, tell: Tell) -> Verified:
    """Run them. A signal ends the run that goes on, and keeps what was measured before.

    Raises:
        ValueError: model or data cannot be made; nothing was run.
    """
    done: list[Measured] = []
    signal = 0
    with interruptible():
        try:
            with TemporaryDirectory(prefix=PREFIX) as name:
                folder = Path(name)
                material = prepared(wanted, answer.question, folder)
                for number, (plan, place) in enumerate(runs):
                    one = Run(answer.question, plan, place, wanted, *material, folder / str(number))
                    done.append(one.measured(partial(watch, number, plan)))
                    tell(done[-1])
        except Stopped as stopped:
            signal = stopped.number
    return verified(answer.question, answer.plans, done, wanted.launch.place.kind == CPU, signal)


def prepared(wanted: Wanted, question: Question, folder: Path) -> tuple[Path, Path]:
    """(model, data), each the user's where it can be read as it is."""
    data, needs_weights = wanted.data, not wanted.launch.place.is_rehearsed
    if data is None:
        data = folder / "data"
        write_data(data, question.global_batch, question.sequence)
    if is_complete(wanted.model, needs_weights):
        return wanted.model.resolve(), data.resolve()
    write_model(wanted.model, folder / "model", data, wanted.entry, needs_weights)
    return folder / "model", data.resolve()


@dataclass(frozen=True)
class Run:
    """Of one plan, in a folder of its own.

    Args:
        place: of the plan by prediction.
        folder: is made.
    """

    question: Question
    plan: Plan
    place: int
    wanted: Wanted
    model: Path
    data: Path
    folder: Path

    def measured(self, watch: Callable[[int], None]) -> Measured:
        """What it takes, or why it failed.

        Args:
            watch: is told how many steps are done.
        """
        try:
            return self._lacks_memory() or self._measured(watch)
        except (FusionkitError, OSError) as error:
            return self._failed(str(error))

    def _lacks_memory(self) -> Measured | None:
        """On a host all processes share what is free now."""
        launch = self.wanted.launch
        if launch.place.kind != CPU and not launch.place.is_rehearsed:
            return None
        tensors = 0.0 if launch.place.is_rehearsed else self.plan.needs_bytes
        needed, room = launch.devices * (tensors + PROCESS_BYTES), available_bytes()
        if needed <= room:
            return None
        return self._failed(
            f"not run: {launch.devices} processes need {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
        )

    def _measured(self, watch: Callable[[int], None]) -> Measured:
        self.folder.mkdir()
        flags, launch = self.folder / "flags.json", self.wanted.launch
        flags.write_text(json.dumps(self.flags()))
        commands = launch.commands(self.wanted.entry, flags, self.folder)
        with (
            (self.folder / "launch.log").open("wb") as log,
            Running(commands, log, launch.environment(), self.folder, bool(launch.link)) as running,
            shaped(running, launch.link),
        ):
            ended = running.wait(self.wanted.limit, lambda: watch(len(reading.step_seconds(self.output))))
            failed = running.failed
        if not ended:
            return self._failed(f"it had not ended after {self.wanted.limit:.0f} s, the limit")
        if failed:
            return self._failed(reading.reason(self.folder, self._ranks()))
        found = self._read()
        return self._failed(lacking) if (lacking := self._lacking(found)) else found

    def _lacking(self, found: Measured) -> str:
        """What a run that ended well has not written; empty if nothing is missing."""
        steps = 0 if self.wanted.launch.place.is_rehearsed else self.wanted.steps
        if len(found.steps) < steps:
            return f"log.jsonl must have `seconds` of {steps} steps, got {len(found.steps)}"
        if len(found.peaks) != self.wanted.launch.devices:
            return f"report.json must have the memory of {self.wanted.launch.devices} ranks, got {len(found.peaks)}"
        return ""

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def flags(self) -> dict[str, object]:
        """What `--write` gives, and what a run needs beside it."""
        return {
            **sft_flags.flags(self.plan.layout, self.question.sequence, self.question.rates.dtype),
            "model_name_or_path": str(self.model),
            "dataset_name_or_path": str(self.data),
            "output_dir": str(self.output),
            "max_steps": self.wanted.steps,
            "save_model": False,
        }

    def _read(self) -> Measured:
        if self.wanted.launch.place.is_rehearsed:
            peaks = [float(rank["peak"]["bytes"]) for rank in self._ranks() if rank["peak"]]
            return Measured(self.plan, self.place, (), tuple(peaks))
        steps, peaks = reading.step_seconds(self.output), reading.peaks(self.output)
        return Measured(self.plan, self.place, tuple(steps), tuple(peaks))

    def _ranks(self) -> list[dict[str, Any]]:
        return reading.rehearsed(report_of(self.folder))

    def _failed(self, reason: str) -> Measured:
        return Measured(self.plan, self.place, reason=reason)


@contextmanager
def shaped(running: Running, link: str) -> Iterator[None]:
    """Inside the block the processes are hosts that a link of this rate joins; without a rate they are as they are."""
    if not link:
        yield
        return
    from fusionkit_bench.mc2.network import Network

    network = Network([process.pid for process in running.processes], link)
    try:
        running.go()
        yield
    finally:
        network.close()
