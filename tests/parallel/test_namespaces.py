"""Two hosts with two ranks each, as network namespaces with a link: the ranks find out who is a neighbour."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hanging import HANGING
from tests.parallel.ranks import begin_together

ROOT = Path(__file__).parents[2]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def may_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"fusionkit-{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return False
    ip("netns", "del", name)
    return True


@pytest.fixture
def hosts():
    """Namespaces and their addresses."""
    if not may_make_namespaces():
        pytest.skip("network namespaces need root and ip (package iproute2)")
    names = [f"fusionkit-{os.getpid()}-{end}" for end in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "near", "type", "veth", "peer", "name", "near", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "near")
            ip("-n", name, "link", "set", "near", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def started(hosts, meeting: Path, name: str, timeout: float, arguments: dict) -> list[subprocess.Popen[bytes]]:
    """Four ranks, two on each host."""
    processes = []
    for rank in range(4):
        namespace, address = hosts[rank // 2]
        what = ["namespaces", str(meeting), str(rank), "4", str(timeout), name, json.dumps(arguments)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RANK_ADDRESS": address}
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.parallel.ranks", *what]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    begin_together(processes)
    return processes


def results(processes: list[subprocess.Popen[bytes]]) -> list:
    try:
        return [pickle.loads(each.communicate(timeout=HANGING)[0]) for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()


def test_ranks_of_two_hosts_share_memory_and_a_link(hosts, tmp_path):
    processes = started(hosts, tmp_path / "meeting", "overlapping", 20, {"rounds": 2})
    for passed in results(processes):
        assert isinstance(passed, list), passed
        assert all(passed)


def test_a_link_that_is_cut_is_an_error_within_the_timeout(hosts, tmp_path):
    (tmp_path / "started").mkdir()
    arguments = {"size": 1000, "started": str(tmp_path / "started")}
    processes = started(hosts, tmp_path / "meeting", "forever", 2, arguments)
    while len(os.listdir(tmp_path / "started")) < 4:
        assert all(process.poll() is None for process in processes)
    ip("-n", hosts[0][0], "link", "set", "near", "down")
    for error in results(processes):
        assert "must answer within 2 s, got" in str(error)


@pytest.mark.parametrize("address", ["127.0.1.1", "localhost"])
def test_a_host_whose_address_is_loopback_is_an_error_at_once_on_all_ranks(hosts, tmp_path, address):
    """As Debian's /etc/hosts gives it for the host's own name."""
    misled = [(hosts[0][0], address), hosts[1]]
    processes = started(misled, tmp_path / "meeting", "overlapping", 500, {"rounds": 2})
    for error in results(processes):  # far within the timeout
        assert "the address of rank 0 on host" in str(error) and "loopback" in str(error)
        assert "Pass from_store(address=...)" in str(error)


def test_loopback_serves_ranks_of_one_host(hosts, tmp_path):
    near = [(hosts[0][0], "127.0.1.1")] * 2
    processes = started(near, tmp_path / "meeting", "overlapping", 20, {"rounds": 2})
    for passed in results(processes):
        assert isinstance(passed, list), passed
        assert all(passed)
