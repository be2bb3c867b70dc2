"""How the ranks of a communicator tell each other, through a store, where they are."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from fusionkit.errors import argument_error
from fusionkit.parallel.native import library
from fusionkit.parallel.work import CommunicatorError, check


class Store(Protocol):
    """Paddle's TCPStore, or anything like it. With `add(key, number) -> sum`, waits end at the caller's timeout."""

    def set(self, key: str, value: Any, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...


def join_store(
    store: Store, rank: int, world_size: int, *, name: str, address: str | None, host: str | None, timeout: float
) -> ctypes.c_void_p:
    """A communicator of the library. See Communicator.from_store."""
    deadline = time.monotonic() + timeout
    address = default_address() if address is None else address
    listener, port, made = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_void_p()
    check(library().fusionkit_parallel_listen(address.encode(), ctypes.byref(listener), ctypes.byref(port)))
    try:
        member = {"host": host_identity() if host is None else host, "address": address, "port": port.value}
        if rank == 0:
            member["key"] = _create_key().hex()
        _publish(store, f"{name}/{rank}", json.dumps(member).encode())
        members = [_find(store, name, each, world_size, timeout, deadline) for each in range(world_size)]
        check(
            library().fusionkit_parallel_join_hosts(
                listener,
                bytes.fromhex(str(members[0]["key"])),
                rank,
                world_size,
                (ctypes.c_char_p * world_size)(*(str(each["host"]).encode() for each in members)),
                (ctypes.c_char_p * world_size)(*(str(each["address"]).encode() for each in members)),
                (ctypes.c_int * world_size)(*(int(str(each["port"])) for each in members)),
                max(deadline - time.monotonic(), 0.0),
                timeout,
                ctypes.byref(made),
            )
        )
    finally:
        library().fusionkit_parallel_stop_listening(listener)
    return made


def default_address() -> str:
    """The host that `paddle.distributed.launch` gave this rank, else this machine alone."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").rpartition(":")[0].strip("[]")


def host_identity() -> str:
    """The same text for processes that can share memory and see each other end: one boot, user and namespaces."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "pid")]
    return f"{boot}/{os.geteuid()}/{namespaces[0]}/{namespaces[1]}"


def _create_key() -> bytes:
    made = ctypes.create_string_buffer(library().fusionkit_parallel_key_size())
    check(library().fusionkit_parallel_create_key(made))
    return made.raw


def _publish(store: Store, key: str, value: bytes) -> None:
    store.set(key, value)
    if hasattr(store, "add") and store.add(f"{key}/set", 1) != 1:
        raise argument_error(
            "from_store", "name", "one that no group had before", repr(key.rpartition("/")[0]), "the store has its keys"
        )


def _find(store: Store, name: str, rank: int, world_size: int, timeout: float, deadline: float) -> dict[str, object]:
    key = f"{name}/{rank}"
    while hasattr(store, "add") and store.add(f"{key}/set", 0) == 0:
        if time.monotonic() >= deadline:
            raise CommunicatorError(
                f"communicator: all {world_size} ranks must join within {timeout:g} s, rank {rank} did not come to the"
                f" store under {name!r}"
            )
        time.sleep(0.005)
    found: dict[str, object] = json.loads(bytes(store.get(key)))
    return found
