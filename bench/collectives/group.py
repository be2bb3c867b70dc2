"""The processes of one contestant, kept for all cases."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from fusionkit_bench.collectives.cases import Case

from fusionkit import extras

MODULE = "fusionkit_bench.collectives.worker"


@dataclass(frozen=True)
class Kind:
    name: str
    worker: str
    tcp: bool

    def missing(self) -> str | None:
        """What must be installed first."""
        if self.worker == "gloo" and (absent := extras.missing("paddle")):
            return f"Paddle: {absent}"
        if self.worker == "mpi" and (importlib.util.find_spec("mpi4py") is None or shutil.which("mpirun") is None):
            return "OpenMPI and mpi4py: apt-get install openmpi-bin; pip install mpi4py"
        return None


OWN = (Kind("fusionkit, memory", "fusionkit", False), Kind("fusionkit, tcp", "fusionkit", True))
PEERS = (Kind("OpenMPI, memory", "mpi", False), Kind("gloo, tcp", "gloo", True), Kind("OpenMPI, tcp", "mpi", True))


class Group:
    """Ranks that wait, without using a core, until `measure` asks them."""

    def __init__(self, kind: Kind, world_size: int) -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory(prefix="fusionkit-bench-")
        start = self._start_by_mpirun if kind.worker == "mpi" else self._start
        self._processes = start(world_size)
        for process in self._processes:
            self._answer(process)

    def measure(self, case: Case) -> float | None:
        """Seconds of the slowest rank; None when the contestant does not have the call."""
        found = self.times(case)
        return None if found is None else found[0]

    def times(self, case: Case) -> tuple[float, float] | None:
        """(seconds, processor seconds) of the rank that has most of each; None when the contestant has no such call."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([case.op, case.num_bytes]) + "\n")
            process.stdin.flush()
        every = [self._answer(process) for process in self._processes]
        found = [each for each in every if each is not None]
        if len(found) < len(every):
            return None
        seconds, processor_seconds = zip(*found, strict=True)
        return max(seconds), max(processor_seconds)

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self._folder.cleanup()

    def _answer(self, process: subprocess.Popen[str]) -> list[float] | None:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line.startswith("{"):
                found: list[float] | None = json.loads(line)["times"]
                return found
        raise RuntimeError(f"bench collectives: a process of {self.kind.name} ended; its messages are above")

    def _start(self, world_size: int) -> list[subprocess.Popen[str]]:
        ports = free_ports(world_size + 1)
        endpoints = [f"127.0.0.1:{port}" for port in ports[1:]]
        started = []
        for rank in range(world_size):
            env = os.environ | {
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(world_size),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
                "PADDLE_MASTER": f"127.0.0.1:{ports[0]}",
                "PADDLE_DISTRI_BACKEND": "gloo",
                "GLOG_minloglevel": "2",
            }
            started.append(self._process([*self._command(str(rank), world_size)], env))
        return started

    def _start_by_mpirun(self, world_size: int) -> list[subprocess.Popen[str]]:
        way = ["self,tcp", "--mca", "btl_tcp_if_include", "lo"] if self.kind.tcp else ["self,vader"]
        options = ["-n", str(world_size), "--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1", "--mca", "btl"]
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        return [self._process(["mpirun", *root, *options, *way, *self._command("0", world_size)], dict(os.environ))]

    def _command(self, rank: str, world_size: int) -> list[str]:
        tcp = ["tcp"] if self.kind.tcp else []
        return [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            MODULE,
            self.kind.worker,
            rank,
            str(world_size),
            self._folder.name,
        ] + tcp

    def _process(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
