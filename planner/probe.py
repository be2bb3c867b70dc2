"""Measures what the planner's formulas need of this machine: products by shape, memory, and collectives.

As many processes as devices time the same things at the same time, as ranks of a training do; the slowest counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from fusionkit_bench.collectives.cases import Case
from fusionkit_bench.collectives.group import OWN, Group
from fusionkit_planner import probe_shapes
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.probe_shapes import Shape
from fusionkit_planner.rates import Level, Product, Rates

from fusionkit.cores import for_arithmetic
from fusionkit.errors import argument_error

MODULE = "fusionkit_planner.probe_worker"
SHARE_OF_PRODUCTS, SHARE_OF_COLLECTIVES = 0.6, 0.25  # of the time; starting and memory have the rest
SHARE_OF_MEMORY = 1 / 32  # of the machine's, for one product
OPS = ("all_gather", "reduce_scatter")
ROUNDS = 3  # through the shapes, as far as there is time: what disturbs one call may disturb those after it, too
REPEATS = 3  # of a collective; the fastest counts
LEAST = 6  # messages that are timed, however late it is: the three smallest sizes
MOVED = 16 << 20  # bytes of the collectives whose processor time is taken
SOCKETS = "fusionkit's communicator over TCP, processor time of gathers and reduce-scatters of 16 MiB"
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Wanted:
    """Args:
    devices: processes, each a device of a training.
    seconds: that the probe may take, about.
    dtype: of products.
    architecture: whose products are timed beside the grid; None for the grid alone.
    """

    devices: int
    seconds: float
    dtype: str
    architecture: Architecture | None = None


class Workers:
    """Processes that time the same at the same time."""

    def __init__(self, count: int) -> None:
        self.threads = max(1, for_arithmetic().number // count)
        env = os.environ | {"OMP_NUM_THREADS": str(self.threads), "GLOG_minloglevel": "2"}
        command = [sys.executable, "-W", "ignore", "-m", MODULE]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._processes = [
            subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True
            )
            for _ in range(count)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._messages.close()

    def ask(self, **what: Any) -> list[Any]:
        """What each answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    def seconds(self, **what: Any) -> float:
        """Of the slowest."""
        found: list[float] = self.ask(**what)
        return max(found)

    def _answer(self, process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        while line := process.stdout.readline():
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue  # a library's message
        process.wait()
        self._messages.seek(0)
        last = self._messages.read().decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(f"plan probe: a process ended with status {process.returncode}. {' '.join(last)}")


def probe(wanted: Wanted, progress: Progress) -> Rates:
    """Measure, within about the wanted seconds.

    Raises:
        ValueError: the devices are no processors of a host, and their collectives were asked for.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(wanted.devices))
        about = workers.ask(what="about")[0]
        _require_host(about, wanted.devices)
        launch = workers.seconds(what="launch", dtype=wanted.dtype)
        until = begun + SHARE_OF_PRODUCTS * wanted.seconds
        products, left_out = _products(workers, wanted, about["memory_bytes"], launch, until, progress)
        attention = _attention(workers, wanted, products, launch)
        bandwidth = _bandwidth(workers, wanted, launch, about["memory_bytes"])
    rest = wanted.seconds - (time.monotonic() - begun)
    levels = _levels(wanted.devices, min(rest, SHARE_OF_COLLECTIVES * wanted.seconds), progress)
    sockets = _socket_seconds(wanted.devices)
    is_host = about["device"] == "cpu"
    return Rates(
        name=about["name"],
        dtype=wanted.dtype,
        peak_flops=max(one.flops for one in products),
        attention_flops=attention,
        memory_bandwidth=bandwidth,
        memory_bytes=about["memory_bytes"] / (wanted.devices if is_host else 1),
        products=products,
        levels=levels,
        launch_seconds=launch,
        socket_seconds=sockets,
        sources=_sources(wanted, about["name"], workers.threads if is_host else None, products, left_out),
    )


def _require_host(about: dict[str, Any], devices: int) -> None:
    if devices > 1 and about["device"] != "cpu":
        raise argument_error(
            "plan probe", "--devices", f"1 on {about['device']}, whose collectives it does not measure", devices,
            advice="Name the link in `fusionkit plan train --link DEVICES:GB/s:US`",
        )  # fmt: skip


def _products(
    workers: Workers, wanted: Wanted, memory_bytes: float, launch: float, until: float, progress: Progress
) -> tuple[tuple[Product, ...], int]:
    """What was timed until then, and how many shapes were not. Each is timed alone, so a launch is taken off."""

    def timed(shape: Shape) -> Product:
        names = ("rows", "in_features", "out_features")
        seconds = workers.seconds(what="product", dtype=wanted.dtype, **dict(zip(names, shape, strict=True)))
        return Product(*shape, max(seconds - launch, 0.1 * seconds))

    reference = timed(probe_shapes.REFERENCE)
    most = SHARE_OF_MEMORY * memory_bytes / wanted.devices
    shapes = probe_shapes.products(reference.flops, most, wanted.architecture)
    found = {probe_shapes.REFERENCE: reference}
    for shape in progress(ROUNDS * _spread(shapes), "products"):
        if time.monotonic() < until:
            again = timed(shape)
            found[shape] = min(again, found.get(shape, again), key=lambda one: one.seconds)
    return tuple(found[shape] for shape in shapes if shape in found), len(shapes) - len(found)


def _spread(shapes: Sequence[Shape]) -> list[Shape]:
    """Every fourth first: where time ends early, small and large ones are there all the same."""
    return [shape for first in range(4) for shape in shapes[first::4]]


def _attention(workers: Workers, wanted: Wanted, products: tuple[Product, ...], launch: float) -> float:
    """FLOP/s of the scores that the causal mask leaves, forward."""
    rows = probe_shapes.attention_rows(max(one.flops for one in products))
    heads, head_dim = probe_shapes.HEADS, probe_shapes.HEAD_DIM
    seconds = workers.seconds(what="attention", rows=rows, heads=heads, head_dim=head_dim, dtype=wanted.dtype)
    return 4.0 * rows * rows * heads * head_dim / 2 / max(seconds - launch, 0.1 * seconds)


def _bandwidth(workers: Workers, wanted: Wanted, launch: float, memory_bytes: float) -> float:
    """Bytes/s of the largest stream that is no more than a fraction of the memory: no cache holds it."""
    fitting = [size for size in probe_shapes.STREAM_BYTES if size <= SHARE_OF_MEMORY * memory_bytes / wanted.devices]
    size = (fitting or probe_shapes.STREAM_BYTES[:1])[-1]
    seconds = workers.seconds(what="memory", num_bytes=size, dtype=wanted.dtype)
    return size / max(seconds - launch, 0.1 * seconds)


def _levels(devices: int, seconds: float, progress: Progress) -> tuple[Level, ...]:
    """Rate and latency of this host's processes, fitted to gathers by size."""
    if devices == 1:
        return ()
    group = Group(OWN[0], devices)
    found: list[tuple[int, float]] = []
    until = time.monotonic() + seconds
    try:
        for size, op in progress([(size, op) for size in probe_shapes.MESSAGES for op in OPS], "collectives"):
            if len(found) < LEAST or time.monotonic() < until:
                found.append((size, min(filter(None, (group.measure(Case(op, size)) for _ in range(REPEATS))))))
        moving = moving_seconds(group, devices)
    finally:
        group.close()
    bandwidth, latency = fitted(devices, found)
    return (Level("host", devices, bandwidth, latency, processor_seconds=moving),)


def _socket_seconds(devices: int) -> float:
    """`processor_seconds` between processes that are hosts."""
    if devices == 1:
        return 0.0
    group = Group(OWN[1], devices)
    try:
        return moving_seconds(group, devices)
    finally:
        group.close()


def moving_seconds(group: Group, devices: int) -> float:
    """Of a rank's processor, for each byte that it sends and receives: the mean of a gather and a reduce-scatter."""
    sent = (devices - 1) / devices * MOVED
    times = [[group.times(Case(op, MOVED)) for _ in range(REPEATS)] for op in OPS]
    return sum(min(busy for _, busy in filter(None, each)) for each in times) / len(OPS) / sent


def fitted(devices: int, measured: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(bandwidth, latency) of (devices - 1) (bytes / devices / bandwidth + latency), with least relative errors.

    Args:
        measured: bytes of a whole result, and seconds.
    """
    sizes, seconds = (np.array(column, np.float64) for column in zip(*measured, strict=True))
    terms = np.stack([(devices - 1) * sizes / devices, np.full_like(sizes, devices - 1)], axis=1)
    (per_byte, latency), *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones_like(seconds), rcond=None)
    slowest = float(np.max(terms[:, 0] / seconds))
    return (1 / float(per_byte) if per_byte > 0 else slowest), max(0.0, float(latency))


def _sources(
    wanted: Wanted, name: str, threads: int | None, products: tuple[Product, ...], left_out: int
) -> dict[str, str]:
    """Of each rate.

    Args:
        threads: of each process on a host; None on another device.
        left_out: shapes of products.
    """
    threads_too = f", {threads} threads each" if threads else ""
    where = f"measured on {name}, {wanted.devices} at a time{threads_too}: "
    late = f", {left_out} left out for want of time" if left_out else ""
    rows = probe_shapes.attention_rows(max(one.flops for one in products))
    link = f"{where}fusionkit's communicator in memory, gathers of 4 KiB to 64 MiB"
    return {
        "peak_flops": f"{where}the fastest product",
        "products": f"{where}fused_linear, {wanted.dtype}, {len(products)} shapes{late}",
        "attention_flops": f"{where}flash_attention, {wanted.dtype}, causal, a sequence of {rows}, forward",
        "memory_bandwidth": f"{where}swiglu, {wanted.dtype}",
        "memory_bytes": "of the host, divided by the devices" if threads else "Paddle's",
        "launch_seconds": f"{where}swiglu of 16 elements",
        "levels": link if wanted.devices > 1 else "one device",
        "socket_seconds": f"{where}{SOCKETS}" if wanted.devices > 1 else "one device",
    }
