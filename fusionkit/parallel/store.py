"""How the ranks of a communicator tell each other, through a store, where they are."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fusionkit.errors import argument_error
from fusionkit.parallel.native import Watch, join_hosts, library
from fusionkit.parallel.work import CommunicatorError, check


class Store(Protocol):
    """Paddle's TCPStore, or anything like it."""

    def set(self, key: str, value: Any, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...


@runtime_checkable
class Counting(Protocol):
    """A store that can be asked without waiting: waits end at the caller's timeout, or when another rank fails."""

    def add(self, key: str, number: int, /) -> int: ...


Member = dict[str, object]


def join_store(
    store: Store, rank: int, world_size: int, *, name: str, address: str | None, host: str | None, timeout: float
) -> tuple[ctypes.c_void_p, str]:
    """A communicator of the library, and its number. See Communicator.from_store."""
    meeting = Meeting(store, rank, world_size, name, timeout)
    listener = ctypes.c_void_p()
    try:
        meeting.publish(_listen(listener, default_address() if address is None else address, host))
        members = [meeting.find(each) for each in range(world_size)]
        require_reachable(members)
        return meeting.join(listener, members), number_of(bytes.fromhex(str(members[0]["key"])))
    except CommunicatorError as error:
        meeting.tell_failure(str(error))
        raise
    except KeyboardInterrupt:
        meeting.tell_failure(f"communicator: joining was interrupted on rank {rank}")
        raise
    finally:
        library().fusionkit_parallel_stop_listening(listener)


def _listen(listener: ctypes.c_void_p, address: str, host: str | None) -> Member:
    """Where this rank is: its address in numbers, so that all hosts call what it listens on."""
    port = ctypes.c_int()
    check(library().fusionkit_parallel_listen(address.encode(), ctypes.byref(listener), ctypes.byref(port)))
    found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][4]
    numbers = socket.getnameinfo(found, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return {
        "host": host_identity() if host is None else host,
        "network": network_identity(),
        "machine": platform.node(),
        "given": address,
        "address": numbers,
        "port": port.value,
    }


class Meeting:
    """What one rank does with the store until all have joined."""

    def __init__(self, store: Store, rank: int, world_size: int, name: str, timeout: float) -> None:
        self.store, self.rank, self.world_size, self.name, self.timeout = store, rank, world_size, name, timeout
        self.deadline = time.monotonic() + timeout
        self._failure = ""  # of the rank that failed first
        self._raised: Exception | None = None
        self._next_look = 0.0

    def publish(self, member: Member) -> None:
        if self.rank == 0:
            member = member | {"key": _create_key().hex()}
        key = f"{self.name}/{self.rank}"
        self.store.set(key, json.dumps(member).encode())
        if isinstance(self.store, Counting) and self.store.add(f"{key}/set", 1) != 1:
            rule, context = "one that no group had before", "the store has its keys"
            raise argument_error("from_store", "name", rule, repr(self.name), context)

    def find(self, rank: int) -> Member:
        key = f"{self.name}/{rank}"
        while isinstance(self.store, Counting) and self.store.add(f"{key}/set", 0) == 0:
            if self.has_failed():
                raise CommunicatorError(self._failure)
            if time.monotonic() >= self.deadline:
                raise CommunicatorError(
                    f"communicator: all {self.world_size} ranks must join within {self.timeout:g} s, rank {rank} did"
                    f" not come to the store under {self.name!r}"
                )
            time.sleep(0.005)
        found: Member = json.loads(bytes(self.store.get(key)))
        return found

    def join(self, listener: ctypes.c_void_p, members: list[Member]) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        size = self.world_size
        status = join_hosts()(
            listener,
            bytes.fromhex(str(members[0]["key"])),
            self.rank,
            size,
            (ctypes.c_char_p * size)(*(str(each["host"]).encode() for each in members)),
            (ctypes.c_char_p * size)(*(str(each["address"]).encode() for each in members)),
            (ctypes.c_int * size)(*(int(str(each["port"])) for each in members)),
            max(self.deadline - time.monotonic(), 0.0),
            self.timeout,
            Watch(self._watch),
            ctypes.byref(made),
        )
        if self._raised is not None:
            raise self._raised
        if status != 0 and self._failure:
            raise CommunicatorError(self._failure)
        check(status)
        return made

    def _watch(self, own_failure: bytes | None) -> int:
        """Called by the library, through which no exception passes: that of a store that has gone waits outside."""
        try:
            if own_failure is not None:
                self.tell_failure(own_failure.decode())
            return self.has_failed()
        except Exception as error:
            self._raised = error
            return 1

    def tell_failure(self, text: str) -> None:
        """To the ranks that wait; where the store cannot be asked without waiting, they wait for their timeout."""
        self._next_look = 0.0  # who failed first is who is told
        if isinstance(self.store, Counting) and not self.has_failed():
            self._failure = text
            self.store.set(f"{self.name}/failure", text.encode())
            self.store.add(f"{self.name}/failure/set", 1)

    def has_failed(self) -> bool:
        """Whether another rank has told that it could not join; looks at most every 200 ms."""
        if isinstance(self.store, Counting) and not self._failure and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + 0.2
            if self.store.add(f"{self.name}/failure/set", 0) != 0:
                self._failure = bytes(self.store.get(f"{self.name}/failure")).decode()
        return bool(self._failure)


def require_reachable(members: list[Member]) -> None:
    """Higher ranks call lower ones: an address that leads every host to itself is an error on all ranks at once."""
    for rank, called in enumerate(members):
        kind = _own_kind(str(called["address"]))
        callers = [each for each in range(rank + 1, len(members)) if _is_elsewhere(members[each], called)]
        if kind and callers:
            given = "" if called["given"] == called["address"] else f", as {called['given']!r} resolves there"
            raise argument_error(
                "communicator",
                f"the address of rank {rank} on host {called['machine']}",
                "one that the other hosts reach",
                f"{called['address']} ({kind}{given})",
                f"rank {callers[0]} is on host {members[callers[0]]['machine']}",
                "Pass from_store(address=...) or, under paddle.distributed.launch, --host: that host's address in the"
                " network of all",
                kind=CommunicatorError,
            )


def _own_kind(address: str) -> str:
    number = ipaddress.ip_address(address.partition("%")[0])
    return "loopback" if number.is_loopback else "no single address" if number.is_unspecified else ""


def _is_elsewhere(one: Member, other: Member) -> bool:
    """Within one network namespace loopback leads from one rank to the other, also where they share no memory."""
    networks = one.get("network"), other.get("network")  # a rank of fusionkit 0.1.0 does not tell its own
    return one["host"] != other["host"] and None not in networks and networks[0] != networks[1]


def default_address() -> str:
    """The host that `paddle.distributed.launch` gave this rank, else this machine alone."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").rpartition(":")[0].strip("[]")


def host_identity() -> str:
    """The same text for processes that can share memory and see each other end: one boot, user and namespaces."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "pid")]
    return f"{boot}/{os.geteuid()}/{namespaces[0]}/{namespaces[1]}"


def network_identity() -> str:
    """The same text for processes with the same network interfaces: one boot and network namespace."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/net').st_ino}"


def number_of(identifier: bytes) -> str:
    """What the library's errors call the communicator: the first eight bytes of an id, or of a group's key."""
    return f"{int.from_bytes(identifier[:8], sys.byteorder):016x}"


def _create_key() -> bytes:
    made = ctypes.create_string_buffer(library().fusionkit_parallel_key_size())
    check(library().fusionkit_parallel_create_key(made))
    return made.raw
