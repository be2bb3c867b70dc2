"""The command lines of a run: `paddle.distributed.launch` here, on emulated devices, or on hosts with a shaped link."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionkit_planner.verify.place import CPU, Place

from fusionkit.cores import for_arithmetic
from fusionkit.errors import argument_error

LAUNCH = (sys.executable, "-m", "paddle.distributed.launch")
KIBIBYTE = 1024
PAYLOAD = 0.96  # of what a shaped link carries; the rest is headers: docs/training.md, gradients
PORT = 6170  # of the launchers' store, in a network namespace of the run's own
# `unshare` becomes the shell, which becomes the launcher once the link is there and `Running.go` has written a line.
HOST = ("unshare", "--net", "sh", "-c", 'read -r line; exec "$@"', "sh")


@dataclass(frozen=True)
class Launch:
    """How a script is started.

    Args:
        place: where.
        devices: processes, each with a device.
        memory_bytes: of an emulated device.
        link: a rate such as 200mbit; then each process is a host of its own. Empty for one host.
    """

    place: Place
    devices: int
    memory_bytes: float
    link: str = ""

    def commands(self, script: Path, flags: Path, folder: Path) -> list[list[str]]:
        """One, or one for each host. They write below the folder."""
        words = [str(script), str(flags)]
        if self.link:
            return [self._host(rank, folder, words) for rank in range(self.devices)]
        log = ["--log_dir", str(folder / "log")]
        if self.place.kind == CPU:
            return [[*LAUNCH, "--nproc_per_node", str(self.devices), *log, *words]]
        numbers = ",".join(map(str, range(self.devices)))
        launch = [*LAUNCH, "--devices", numbers, *log, *words]
        return [[*self._emulate(folder), *launch] if self.place.is_rehearsed else launch]

    def _emulate(self, folder: Path) -> list[str]:
        memory = f"{self.memory_bytes / KIBIBYTE:.3f}KiB"
        options = ["--devices", str(self.devices), "--memory", memory, "--report", str(report_of(folder))]
        return [sys.executable, "-m", "fusionkit", "emulate", self.place.kind, "--rehearse", *options, "--"]

    def _host(self, rank: int, folder: Path, words: Sequence[str]) -> list[str]:
        from fusionkit_bench.mc2.network import address

        places = ["--nnodes", str(self.devices), "--rank", str(rank), "--nproc_per_node", "1"]
        names = ["--master", f"{address(0)}:{PORT}", "--host", address(rank)]
        return [*HOST, *LAUNCH, *places, *names, "--log_dir", str(folder / f"log{rank}"), *words]

    def environment(self) -> dict[str, str]:
        """Processes of a host share its cores, as those of the probe do."""
        threads = max(1, for_arithmetic().number // self.devices)
        own = {"OMP_NUM_THREADS": str(threads)} if self.place.kind == CPU else {}
        return {**os.environ, "GLOG_minloglevel": "2", **own}


def report_of(folder: Path) -> Path:
    """What a rehearsal writes."""
    return folder / "rehearsal.json"


def bytes_per_s(link: str) -> float:
    """Of a rate such as 200mbit, without headers.

    Raises:
        ValueError: it is none.
    """
    from fusionkit_bench.mc2.network import bits_per_s

    try:
        return PAYLOAD * bits_per_s(link) / 8
    except ValueError:
        raise argument_error("plan train", "--shape", "a rate such as 200mbit or 1gbit", repr(link)) from None


def require_link(link: str, place: Place, devices: int) -> None:
    """Refuse a shaped link where there can be none.

    Raises:
        ValueError: the processes are not those of a host, or a right or a program is missing.
    """
    from fusionkit_bench.mc2 import network

    bytes_per_s(link)
    if place.kind != CPU or devices < 2:
        raise argument_error("plan train", "--shape", "for at least 2 processes of the host", f"{devices} of {place}")
    if lacking := network.missing():
        raise argument_error("plan train", "--shape", "given as root, with iproute2", "less", "; ".join(lacking))
