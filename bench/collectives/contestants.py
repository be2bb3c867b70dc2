"""One rank of each contestant: the same calls on float32 arrays, through the library that it is named after."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fusionkit_bench.collectives.cases import CEILING, Case

Call = Callable[[], object]


class Folder:
    """A store of files, so that no server is needed."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def set(self, key: str, value: bytes) -> None:
        partial = self._folder / f"{key.replace('/', '-')}.partial"
        partial.write_bytes(value)
        partial.rename(partial.with_suffix(""))

    def get(self, key: str) -> bytes:
        path = self._folder / key.replace("/", "-")
        while not path.exists():
            time.sleep(0.002)
        return path.read_bytes()


class Fusionkit:
    """Over shared memory, or over TCP: then each rank says that it is a host of its own."""

    def __init__(self, rank: int, world_size: int, meeting: str, tcp: bool) -> None:
        from fusionkit.parallel import Communicator

        host = str(rank) if tcp else "one"
        self._own = Communicator.from_store(Folder(meeting), rank, world_size, name="bench", host=host, timeout=60)
        self._tcp, self._meeting = tcp, meeting
        self.barrier = self._own.barrier

    def call(self, case: Case) -> Call:
        own, size = self._own, case.num_bytes // 4
        whole, part = np.ones(size, np.float32), np.ones(max(1, size // self._own.world_size), np.float32)
        rows = np.ones((own.world_size, part.size), np.float32)
        out = np.empty_like(whole)
        if case.op == CEILING:
            return self._socket(whole, out) if self._tcp else lambda: np.copyto(out, whole)
        if case.op == "send_recv":
            return _ping_pong(own.rank, lambda: own.send(whole, 1), lambda: own.recv(out, 0),
                              lambda: own.send(whole, 0), lambda: own.recv(out, 1))  # fmt: skip
        calls: dict[str, Call] = {
            "all_reduce": lambda: own.all_reduce(whole, out=out),
            "all_gather": lambda: own.all_gather(part, out=rows),
            "reduce_scatter": lambda: own.reduce_scatter(rows, out=part),
        }
        return calls[case.op]

    def _socket(self, whole: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> Call:
        """Rank 0 sends and rank 1 receives, through a plain socket."""
        link = self._connected()
        if link is None:
            return lambda: None
        view = out.data.cast("B")

        def receive() -> None:
            received = 0
            while received < view.nbytes:
                received += link.recv_into(view[received:])
            link.sendall(b"x")

        def send() -> None:
            link.sendall(whole.data.cast("B"))
            link.recv(1)

        return send if self._own.rank == 0 else receive

    def _connected(self) -> Any:
        import socket

        if not hasattr(self, "_link"):
            port = np.zeros(1, np.int64)
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen(1)
                port[0] = listener.getsockname()[1]
                port = self._own.broadcast(port)
                pair = {
                    0: lambda: listener.accept()[0],
                    1: lambda: socket.create_connection(("127.0.0.1", int(port[0]))),
                }
                self._link = pair[self._own.rank]() if self._own.rank in pair else None
        return self._link


class Gloo:
    """Paddle's, over TCP."""

    def __init__(self, rank: int, world_size: int, meeting: str, tcp: bool) -> None:
        import paddle
        import paddle.distributed as dist

        paddle.set_device("cpu")
        dist.init_parallel_env()
        self._paddle, self._dist, self._rank, self._world_size = paddle, dist, rank, world_size

    def barrier(self) -> None:
        self._dist.barrier()

    def call(self, case: Case) -> Call:
        dist, size = self._dist, case.num_bytes // 4
        whole, part = self._paddle.ones([size]), self._paddle.ones([max(1, size // self._world_size)])
        if case.op == "send_recv":
            return _ping_pong(self._rank, lambda: dist.send(whole, 1), lambda: dist.recv(whole, 0),
                              lambda: dist.send(whole, 0), lambda: dist.recv(whole, 1))  # fmt: skip
        if case.op == "all_reduce":
            return lambda: dist.all_reduce(whole)
        if case.op == "all_gather":
            return lambda: dist.all_gather([], part)
        raise NotImplementedError(f"Paddle's gloo has no {case.op}")


class Mpi:
    """OpenMPI, or another MPI, through mpi4py."""

    def __init__(self, rank: int, world_size: int, meeting: str, tcp: bool) -> None:
        from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]

        self.world = MPI.COMM_WORLD
        self.barrier = self.world.Barrier

    def call(self, case: Case) -> Call:
        world, size = self.world, case.num_bytes // 4
        whole, part = np.ones(size, np.float32), np.ones(max(1, size // world.size), np.float32)
        rows = np.ones((world.size, part.size), np.float32)
        out = np.empty_like(whole)
        if case.op == "send_recv":
            return _ping_pong(world.rank, lambda: world.Send(whole, 1), lambda: world.Recv(out, 0),
                              lambda: world.Send(whole, 0), lambda: world.Recv(out, 1))  # fmt: skip
        calls: dict[str, Call] = {
            "all_reduce": lambda: world.Allreduce(whole, out),
            "all_gather": lambda: world.Allgather(part, rows),
            "reduce_scatter": lambda: world.Reduce_scatter_block(rows, part),
        }
        if case.op not in calls:
            raise NotImplementedError(case.op)
        return calls[case.op]


def _ping_pong(rank: int, send: Call, recv: Call, send_back: Call, recv_back: Call) -> Call:
    """There and back between ranks 0 and 1: two messages, of which one is counted."""
    if rank == 0:
        return lambda: (send(), recv_back())
    return (lambda: (recv(), send_back())) if rank == 1 else (lambda: None)
