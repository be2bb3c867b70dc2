"""Namespaces, links and processes are set up as said, and nothing of them outlives the benchmark, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fusionkit_bench.mc2 import network
from fusionkit_bench.mc2.network import DEVICE, IN_NEW_NAMESPACE, Network, NetworkError, address, inside
from fusionkit_bench.mc2.process import RankError, RankProcess, answers

MISSING = network.missing()
needs_root = pytest.mark.skipif(bool(MISSING), reason=f"missing: {'; '.join(MISSING)}")

# What the command does before it measures, then nothing.
SET_UP = """
import sys, time
from fusionkit_bench.mc2.network import Network
from fusionkit_bench.mc2.process import RankProcess
ranks = [RankProcess(rank, 3, 0, True) for rank in range(3)]
network = Network([rank.pid for rank in ranks], "200mbit")
for rank in ranks:  # until each listens
    rank.ask("join", "nothing", b"")
    rank.connection.recv()
print(*(rank.pid for rank in ranks), network._bridge.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleepers():
    """Starts processes in namespaces of their own."""
    started = []

    def start(number):
        started.extend(subprocess.Popen([*IN_NEW_NAMESPACE, "sleep", "60"]) for _ in range(number))
        return [process.pid for process in started]

    yield start
    for process in started:
        process.kill()
        process.wait()


def namespaces_of(pids):
    return {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}


def all_namespaces():
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            found.add(os.readlink(entry / "ns/net"))
        except OSError:
            continue
    return found


def wait_until(condition, seconds=10):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


SEND = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
peer, _ = server.accept()
received, start = 0, time.perf_counter()
while chunk := peer.recv(1 << 20):
    received += len(chunk)
print(received / (time.perf_counter() - start))
"""


@needs_root
@pytest.mark.parametrize("number", [2, 3])
def test_each_rank_reaches_the_others_at_the_rate_of_the_link(sleepers, number):
    """4 MB from the last rank to the first, then at twice the rate; never faster, on a busy machine slower."""
    pids = sleepers(number)
    made = Network(pids, "100mbit")
    try:
        assert len(namespaces_of(pids)) == number
        for rate, bytes_per_s in (("100mbit", 12.5e6), ("200mbit", 25e6)):
            made.shape(rate)
            assert 0.2 * bytes_per_s < received_per_s(pids[0], pids[-1]) < 1.05 * bytes_per_s
            for pid in pids:
                assert f"rate {rate.replace('m', 'M')} burst 96Kb" in inside(pid, f"tc qdisc show dev {DEVICE}")
    finally:
        made.close()


def received_per_s(to, source):
    command = ["nsenter", f"--net=/proc/{to}/ns/net", sys.executable, "-c", SEND, address(0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "listening\n"
        send = f"import socket; socket.create_connection(('{address(0)}', 5000)).sendall(bytes(4 << 20))"
        subprocess.run(["nsenter", f"--net=/proc/{source}/ns/net", sys.executable, "-c", send], check=True)
        return float(server.stdout.readline())


@needs_root
def test_namespaces_end_with_their_processes(sleepers):
    pids = sleepers(2)
    Network(pids, "1gbit").close()
    made = namespaces_of(pids)
    assert made <= all_namespaces()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not made & all_namespaces())


@needs_root
def test_a_failing_command_is_named_with_what_it_said(sleepers):
    (pid,) = sleepers(1)
    network.wait_for_namespace(pid)
    with pytest.raises(NetworkError, match="ip link set nothing up must succeed, got: Cannot find device"):
        inside(pid, "ip link set nothing up")


@needs_root
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_benchmark(sent):
    """Though the ranks are stopped, as if they computed without end."""
    parent = subprocess.Popen([sys.executable, "-c", SET_UP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pids = [int(word) for word in parent.stdout.readline().split()]
    made = namespaces_of(pids)
    assert len(made) == 4 and all(map(is_running, pids))
    try:
        for pid in pids[:3]:
            os.kill(pid, signal.SIGSTOP)
        parent.send_signal(sent)
        parent.wait(timeout=10)
        parent.stdout.close()
        assert wait_until(lambda: not any(map(is_running, pids)))
        assert wait_until(lambda: not made & all_namespaces())
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


def test_a_rank_that_fails_tells_why():
    rank = RankProcess(0, 1, 0, False)
    try:
        rank.ask("join", "nothing", b"")
        with pytest.raises(RankError, match="rank 0: "):
            answers([rank])
    finally:
        rank.close()
    assert not is_running(rank.pid)


def test_a_rank_that_dies_is_named():
    ranks = [RankProcess(rank, 2, 0, False) for rank in range(2)]
    try:
        ranks[1].ask("join", "nothing", b"")
        os.kill(ranks[1].pid, signal.SIGKILL)
        with pytest.raises(RankError, match="rank 1 ended with status -9"):
            answers(ranks[1:])
    finally:
        for rank in ranks:
            rank.close()


@pytest.mark.parametrize(("text", "rate"), [("200mbit", 2e8), ("1gbit", 1e9), ("2.5kbit", 2500.0)])
def test_rates_are_those_of_tc(text, rate):
    assert network.bits_per_s(text) == rate


@pytest.mark.parametrize("text", ["", "200", "0mbit", "fast", "200 mbit", "-1mbit"])
def test_other_rates_are_refused(text):
    with pytest.raises(ValueError, match="--link must be rates such as 200mbit"):
        network.bits_per_s(text)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(network.shutil, "which", lambda name: None if name == "tc" else name)
    assert network.missing() == ["tc (package iproute2)"]
