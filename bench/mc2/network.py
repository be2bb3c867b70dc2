"""A network namespace for each rank, a veth between them, and a token bucket on each rank's egress.

Namespaces have no names: each lives as long as the process in it, and its ends of the veths with it. So whatever ends
the processes, be it Ctrl-C, an error or the death of the parent, removes everything, and two runs never meet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from fusionkit.errors import FusionkitError

DEVICE = "link0"
IN_NEW_NAMESPACE = ("unshare", "--net")
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
BURST_BYTES = 96 << 10  # packets on a veth have up to 64 KiB before they are segmented; longer ones are lost
QUEUE = "100ms"  # the longest wait in the queue before packets are dropped
RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
SUBNET = "10.77.0.0/16"  # `address` gives its addresses
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
# Its packets leave as they come. Where the default paces them by timers (BBR), each timer is an interrupt on the
# core that computes: the same collective kept a core busy for 3.4% of its time and 2.6% without.
CONGESTION_CONTROL = "reno"
START_S = 10.0


class NetworkError(FusionkitError, RuntimeError):
    """The network could not be set up; the text has the command and what it said."""


def bits_per_s(rate: str) -> float:
    """ "200mbit" -> 2e8.

    Raises:
        ValueError: rate is not a number with kbit, mbit or gbit.
    """
    match = RATE.fullmatch(rate)
    if match is None or not float(match[1]):
        raise ValueError(f"bench mc2: --link must be rates such as 200mbit or 1gbit, got {rate!r}")
    return float(match[1]) * UNITS[match[2]]


def missing() -> list[str]:
    """What a shaped link needs and this process lacks; empty when all is there."""
    lacking = [f"{name} (package {package})" for name, package in PROGRAMS.items() if shutil.which(name) is None]
    if lacking:
        return lacking
    probe = f"ip link add {DEVICE} type veth peer name peer0 && tc qdisc add dev {DEVICE} root tbf {bucket('1mbit')}"
    done = subprocess.run([*IN_NEW_NAMESPACE, "sh", "-c", probe], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [f"root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, for namespaces, veths and tbf ({said})"]
    return []


def bucket(rate: str) -> str:
    return f"rate {rate} burst {BURST_BYTES} latency {QUEUE}"


def address(rank: int) -> str:
    return f"10.77.{rank >> 8}.{(rank & 255) + 1}"


class Network:
    """Connects processes that were started with `IN_NEW_NAMESPACE`: two by one veth, more by veths to a bridge.

    Args:
        pids: of the ranks, in their order.
        rate: of each rank's egress, and with a bridge of each rank's ingress.
    """

    def __init__(self, pids: Sequence[int], rate: str) -> None:
        self._ports: list[tuple[int, str]] = []  # (a process in the namespace, its device): what is shaped
        self._bridge: subprocess.Popen[bytes] | None = None
        try:
            for pid in pids:
                wait_for_namespace(pid)
            if len(pids) == 2:
                inside(pids[0], f"ip link add {DEVICE} type veth peer name {DEVICE} netns {pids[1]}")
            else:
                self._add_bridge(pids)
            for rank, pid in enumerate(pids):
                inside(pid, "ip link set lo up")
                inside(pid, f"ip address add {address(rank)}/16 dev {DEVICE}")
                inside(pid, f"ip link set {DEVICE} up")
                inside(pid, f"ip route replace {SUBNET} dev {DEVICE} congctl {CONGESTION_CONTROL}")
                self._ports.append((pid, DEVICE))
            self.shape(rate)
        except BaseException:
            self.close()
            raise

    def shape(self, rate: str) -> None:
        """Gives every port this rate, in place of what it had."""
        bits_per_s(rate)
        for pid, device in self._ports:
            inside(pid, f"tc qdisc replace dev {device} root tbf {bucket(rate)}")

    def close(self) -> None:
        """Ends the bridge's namespace; those of the ranks end with them."""
        if self._bridge is not None:
            self._bridge.kill()
            self._bridge.communicate()

    def _add_bridge(self, pids: Sequence[int]) -> None:
        """In a namespace of its own, held by `cat`, which ends when this process does and closes its input."""
        self._bridge = subprocess.Popen([*IN_NEW_NAMESPACE, "cat"], stdin=subprocess.PIPE, start_new_session=True)
        holder = self._bridge.pid
        wait_for_namespace(holder)
        inside(holder, "ip link add bridge0 type bridge")
        inside(holder, "ip link set bridge0 up")
        for rank, pid in enumerate(pids):
            inside(holder, f"ip link add port{rank} type veth peer name {DEVICE} netns {pid}")
            inside(holder, f"ip link set port{rank} master bridge0 up")
            self._ports.append((holder, f"port{rank}"))


def wait_for_namespace(pid: int) -> None:
    """Returns when the process has left this process's namespace."""
    own, until = os.readlink("/proc/self/ns/net"), time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != own:
                return
        except FileNotFoundError:
            break
        time.sleep(0.005)
    raise NetworkError(f"network: process {pid} must enter a namespace of its own, it did not")


def inside(pid: int, command: str) -> str:
    """Runs a command in the network namespace of a process, and returns what it printed."""
    words = ["nsenter", f"--net=/proc/{pid}/ns/net", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"network: {' '.join(words)} must succeed, got: {done.stderr.strip()}")
    return done.stdout
