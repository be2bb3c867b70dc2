"""Ranks that meet through a store and talk through TCP; and whoever else finds the port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest

from fusionkit.parallel import Communicator, CommunicatorError
from fusionkit.parallel.store import network_identity
from tests.hanging import HANGING
from tests.parallel.ranks import Folder


def joined(store, rank: int, world_size: int, *, name: str = "group", timeout: float = 10, **options) -> Communicator:
    """A rank that is a host of its own."""
    return Communicator.from_store(store, rank, world_size, name=name, host=str(rank), timeout=timeout, **options)


def in_threads(world_size: int, work) -> list:
    """work(rank) on as many threads; results, or the exceptions raised."""
    with ThreadPoolExecutor(world_size) as pool:
        futures: list[Future] = [pool.submit(work, rank) for rank in range(world_size)]
        return [future.exception() or future.result() for future in futures]


@pytest.fixture
def connect():
    """Makes clients of one server, one for each rank: Paddle's client is for one thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = paddle.base.core.TCPStore("127.0.0.1", port, True, 1, 30)
    yield lambda: paddle.base.core.TCPStore("127.0.0.1", port, False, 1, 30)
    del server


def open_files() -> list[str]:
    kept = (
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    )
    return sorted(re.sub(r":\[\d+\]", "", each) for each in kept)


def sums(clients: list, world_size: int, name: str) -> list[float]:
    def work(rank: int) -> float:
        with joined(clients[rank], rank, world_size, name=name) as communicator:
            return float(communicator.all_reduce(np.full(50_000, rank + 1.0))[-1])

    return in_threads(world_size, work)


def test_paddles_store_serves_many_groups_and_nothing_is_left(connect):
    clients = [connect() for _ in range(3)]
    assert sums(clients, 2, "first") == [3, 3]
    before = open_files()
    assert sums(clients, 3, "second") == [6, 6, 6]
    assert open_files() == before
    with pytest.raises(ValueError, match="name must be one that no group had before, got 'first'"):
        joined(clients[0], 0, 2, name="first")


def test_a_rank_that_does_not_come_is_named(connect):
    store = connect()
    before, begin = open_files(), time.monotonic()
    with pytest.raises(
        CommunicatorError, match=r"all 3 ranks must join within 0.3 s, rank 1 did not come to the store"
    ):
        joined(store, 0, 3, timeout=0.3)
    assert time.monotonic() - begin < 3
    assert open_files() == before


def member_at(rank: int, port: int, **changes: object) -> bytes:
    """What `rank` says that is at this port."""
    member = {"host": f"host of {rank}", "address": "127.0.0.1", "port": port, "key": bytes(range(96)).hex()}
    member |= {"network": network_identity(), "machine": "planted", "given": "127.0.0.1"} | changes
    return json.dumps(member).encode()


def place(folder: Path, rank: int, port: int, **changes: object) -> Folder:
    store = Folder(str(folder))
    store.set(f"group/{rank}", member_at(rank, port, **changes))
    return store


def test_a_refused_connection_is_an_error_that_names_the_rank(tmp_path):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        store = place(tmp_path, 0, bound.getsockname()[1])
        before, begin = open_files(), time.monotonic()
        with pytest.raises(CommunicatorError, match=r"rank 0 must accept a connection at 127.0.0.1 port \d+, got Conn"):
            joined(store, 1, 2)
    assert time.monotonic() - begin < 5
    assert len(open_files()) == len(before) - 1


def test_a_rank_that_never_connects_is_named_within_the_timeout(tmp_path):
    store = place(tmp_path, 1, 1)
    begin = time.monotonic()
    with pytest.raises(CommunicatorError, match=r"all 2 ranks must join within 0.5 s, rank 1 did not"):
        joined(store, 0, 2, timeout=0.5)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    "address, shown",
    [
        ("127.0.1.1", r"127.0.1.1 \(loopback\)"),  # Debian's, for the host's own name
        ("localhost", r"(127.0.0.1|::1) \(loopback, as 'localhost' resolves there\)"),
        ("::1", r"::1 \(loopback\)"),
        ("0.0.0.0", r"0.0.0.0 \(no single address\)"),
    ],
)
def test_an_address_that_leads_to_the_caller_itself_is_an_error_at_once_on_both_sides(tmp_path, address, shown):
    told = f"the address of rank 0 on host .* must be one that the other hosts reach, got {shown}; rank 1 is on host"
    begin = time.monotonic()
    store = place(tmp_path, 1, 1, network="elsewhere")
    with pytest.raises(CommunicatorError, match=told) as listening:
        joined(store, 0, 2, timeout=60, address=address)
    assert "rank 1 is on host planted. Pass from_store(address=...)" in str(listening.value)
    found = json.loads(store.get("group/0"))
    place(tmp_path, 0, 1, **{key: found[key] for key in ("address", "given")}, network="elsewhere")
    with pytest.raises(CommunicatorError, match=told):
        joined(store, 1, 2, timeout=60)
    assert time.monotonic() - begin < 20


def test_loopback_serves_ranks_of_one_network_and_a_rank_that_nobody_calls(tmp_path):
    def work(rank: int) -> float:
        with joined(Folder(str(tmp_path)), rank, 2, address=("127.0.1.1", "0.0.0.0")[rank]) as communicator:
            return float(communicator.all_reduce(np.ones(1))[0])

    assert in_threads(2, work) == [2, 2]
    store = place(tmp_path / "other", 0, 1, network="elsewhere", address="192.0.2.1", given="192.0.2.1")
    with pytest.raises(CommunicatorError, match="rank 0 must accept a connection at 192.0.2.1 port 1|rank 0 did not"):
        joined(store, 1, 2, timeout=0.5, address="127.0.1.1")


def test_a_rank_that_cannot_call_tells_the_one_that_listens(connect):
    """Rank 1 is given another port for rank 0, at which nobody is."""
    clients = [connect() for _ in range(3)]

    class Misled:
        def __init__(self, store):
            self.set, self.add, self.store = store.set, store.add, store

        def get(self, key: str) -> bytes:
            found = json.loads(bytes(self.store.get(key)))
            return json.dumps(found | ({"port": 1} if key == "group/0" else {})).encode()

    begin = time.monotonic()
    stores = [clients[0], Misled(clients[1]), clients[2]]
    for error in in_threads(3, lambda rank: joined(stores[rank], rank, 3, timeout=60)):
        assert isinstance(error, CommunicatorError)
        assert "rank 0 must accept a connection at 127.0.0.1 port 1, got Connection refused; rank 1 of 3" in str(error)
        assert "127.0.0.1 is loopback" in str(error)
    assert time.monotonic() - begin < 20


def test_a_rank_without_an_address_tells_those_that_wait_for_it(connect):
    clients = [connect() for _ in range(2)]
    begin = time.monotonic()
    addresses = ["127.0.0.1", "192.0.2.1"]
    for error in in_threads(2, lambda rank: joined(clients[rank], rank, 2, timeout=60, address=addresses[rank])):
        assert "address must be one of this host, got 192.0.2.1" in str(error)
    assert time.monotonic() - begin < 20


def test_ctrl_c_ends_a_rank_that_waits_for_others(connect):
    store = connect()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    store.set("group/1", member_at(1, 1))
    store.add("group/1/set", 1)
    with pytest.raises(KeyboardInterrupt):
        joined(store, 0, 2, timeout=60)
    assert time.monotonic() - begin < 20


def port_of(folder: Path, rank: int) -> int:
    while not (folder / f"group-{rank}").exists():
        time.sleep(0.002)
    return int(json.loads((folder / f"group-{rank}").read_bytes())["port"])


def test_strangers_neither_disturb_nor_delay_the_group(tmp_path):
    """Garbage, a wrong word, half a greeting, silence and a flood, before and while the ranks join."""
    strangers: list[socket.socket] = []

    def disturb(port: int, text: bytes) -> None:
        strangers.append(socket.create_connection(("127.0.0.1", port)))
        strangers[-1].sendall(text)

    def leader() -> list:
        with joined(Folder(str(tmp_path)), 0, 2) as communicator:
            return [int(communicator.all_reduce(np.full(9, 1))[0]), port_of(tmp_path, 0)]

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(leader)
        port = port_of(tmp_path, 0)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000, bytes(48), b"half", b"", *[b""] * 300):
            disturb(port, text)
        listening = listeners(port)
        begin = time.monotonic()
        with joined(Folder(str(tmp_path)), 1, 2) as communicator:
            assert time.monotonic() - begin < 3
            assert communicator.all_reduce(np.full(9, 2))[0] == 3
            assert listening == ["127.0.0.1"]  # and no other address
            with pytest.raises(ConnectionRefusedError):  # who comes after the ranks finds nobody
                disturb(port, b"late")
        assert future.result() == [3, port]
    for each in strangers:
        each.close()


def listeners(port: int) -> list[str]:
    """The addresses on which this port is listened on."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            found.append(socket.inet_ntoa(int(local.partition(":")[0], 16).to_bytes(4, "little")))
    return found


def test_a_rank_without_the_groups_key_is_refused(tmp_path):
    (tmp_path / "other").mkdir()

    def work(rank: int):
        folder = tmp_path
        if rank == 1:
            place(tmp_path / "other", 0, port_of(tmp_path, 0))  # with another key
            folder = tmp_path / "other"
        else:
            place(tmp_path, 1, 1)
        return joined(Folder(str(folder)), rank, 2, timeout=1.5)

    first, second = in_threads(2, work)
    assert "rank 1 did not" in str(first)
    assert "rank 0 must accept a connection" in str(second)


def test_ranks_that_disagree_on_the_size_fail_at_once(tmp_path):
    place(tmp_path, 2, 1)
    begin = time.monotonic()
    errors = in_threads(2, lambda rank: joined(Folder(str(tmp_path)), rank, 2 + rank, timeout=20))
    for error in errors:
        assert "world_size must be the same on all ranks, got 2 on rank 0 and 3 on rank 1" in str(error)
    assert time.monotonic() - begin < 5


def test_a_rank_that_has_left_is_told_from_a_dead_one(tmp_path):
    gone = threading.Event()

    def work(rank: int):
        communicator = joined(Folder(str(tmp_path)), rank, 2)
        total = communicator.all_reduce(np.ones(400_000))[0]  # arrives, though rank 1 leaves at once
        assert total == 2
        if rank == 1:
            communicator.close()
            gone.set()
            return None
        gone.wait()
        return communicator.all_reduce(np.ones(8))

    error, _ = in_threads(2, work)
    assert "rank 1 must answer within 10 s, got a rank that has left" in str(error)


def test_an_address_of_another_host_is_refused(tmp_path):
    with pytest.raises(CommunicatorError, match="address must be one of this host, got 192.0.2.1"):
        joined(Folder(str(tmp_path)), 0, 2, address="192.0.2.1")


def test_groups_meet_under_paddles_launcher(tmp_path):
    launch = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo")
    command = [sys.executable, *launch, "--log_dir", str(tmp_path / "log"), "tests/parallel/launched.py", str(tmp_path)]
    root = Path(__file__).parents[2]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PADDLE_")} | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=HANGING)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["3 3 3 127.0.0.1"] * 2
