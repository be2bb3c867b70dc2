"""How many cores a process may use: planted files of /proc and of cgroups, and a real cgroup where one can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusionkit import cores
from native import incremental
from tests.hanging import HANGING

V1 = "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 {shown} /sys/fs/cgroup rw shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = "23 1 0:20 / /proc rw - proc proc rw\n33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


def plant(root: Path, membership: str, mounts: list[str], files: dict[str, str]) -> Path:
    proc = {"proc/self/cgroup": membership, "proc/self/mountinfo": "\n".join([OTHERS, *mounts])}
    siblings = {cores.SIBLINGS.format(thread): f"{thread}" for thread in range(4)}
    for name, text in (proc | siblings | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def version_1(root: Path, path: str, quotas: dict[str, tuple[int, int]], shown: str = "/") -> Path:
    files = {}
    for folder, (quota, period) in quotas.items():
        inside = f"sys/fs/cgroup/cpu,cpuacct{folder}"
        files |= {f"{inside}/cpu.cfs_quota_us": str(quota), f"{inside}/cpu.cfs_period_us": str(period)}
    return plant(root, f"7:cpuset:/\n4:cpu,cpuacct:{path}\n0::{path}", [V1.format(shown=shown)], files)


def version_2(root: Path, path: str, limits: dict[str, str], shown: str = "/") -> Path:
    files = {f"sys/fs/cgroup{folder}/cpu.max": text for folder, text in limits.items()}
    return plant(root, f"0::{path}", [V2.format(shown=shown)], files)


@pytest.mark.parametrize(
    "quota, count",
    [(100_000, 1), (150_000, 2), (200_000, 2), (50_000, 1), (1_000, 1), (399_999, 4), (900_000, 4), (-1, 4)],
)
def test_a_quota_counts_whole_cores_at_least_one_and_no_more_than_there_are(tmp_path, four_threads, quota, count):
    first = version_1(tmp_path / "1", "/docker/abc", {"/docker/abc": (quota, 100_000)})
    limit = "max 100000" if quota == -1 else f"{quota} 100000"
    second = version_2(tmp_path / "2", "/docker/abc", {"/docker/abc": limit})
    assert cores.for_arithmetic(first).number == cores.for_processes(second).number == count
    assert cores.for_arithmetic(second).number == cores.for_processes(first).number == count


def test_the_source_is_the_file(tmp_path, four_threads):
    first = version_1(tmp_path / "1", "/a", {"/a": (25_000, 20_000)})
    assert cores.for_arithmetic(first) == (
        2,
        "a quota of 1.25 cores in /sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us",
    )
    second = version_2(tmp_path / "2", "/a", {"/a": "100000 100000"})
    assert cores.for_arithmetic(second) == (1, "a quota of 1 cores in /sys/fs/cgroup/a/cpu.max")
    none = version_2(tmp_path / "3", "/a", {"/a": "max 100000"})
    assert cores.for_arithmetic(none) == (4, "physical cores of the affinity mask")
    assert cores.for_processes(none) == (4, "hardware threads of the affinity mask")


@pytest.mark.parametrize("where", ["/a", "/a/b", "/a/b/c"])
def test_the_smallest_along_the_path_counts(tmp_path, four_threads, where):
    others = {folder: (-1, 100_000) for folder in ("/a", "/a/b", "/a/b/c")}
    first = version_1(tmp_path / "1", "/a/b/c", others | {where: (100_000, 100_000), "/a/b/other": (1, 100_000)})
    limits = {folder: "300000 100000" for folder in others}
    second = version_2(tmp_path / "2", "/a/b/c", limits | {where: "100000 100000", "/elsewhere": "1 100000"})
    assert cores.for_arithmetic(first).number == cores.for_arithmetic(second).number == 1
    assert where in cores.for_arithmetic(first).source and where in cores.for_arithmetic(second).source


@pytest.mark.parametrize(
    "path, shown",
    [
        ("/docker/abc", "/docker/abc"),  # version 1 in a container: the host's path, the container's folder mounted
        ("/", "/"),  # a cgroup namespace
        ("/../other", "/"),  # a path outside of the namespace
        ("/docker/abc", "/kubepods/xyz"),
    ],
)
def test_in_a_container_the_mounted_folder_counts(tmp_path, four_threads, path, shown):
    first = version_1(tmp_path / "1", path, {"": (100_000, 100_000)}, shown)
    second = version_2(tmp_path / "2", path, {"": "100000 100000"}, shown)
    assert cores.for_arithmetic(first).number == cores.for_arithmetic(second).number == 1


def test_both_versions_count_and_spaces_in_a_mount_point(tmp_path, four_threads):
    mounts = [
        V1.format(shown="/").replace("cpu,cpuacct rw -", r"my\040cpu rw -"),
        V2.format(shown="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
    ]
    files = {
        "sys/fs/cgroup/my cpu/a/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/my cpu/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/unified/b/cpu.max": "150000 100000",
    }
    root = plant(tmp_path, "3:cpu:/a\n0::/b", mounts, files)
    assert cores.quota(root) == (1.5, "/sys/fs/cgroup/unified/b/cpu.max")
    (tmp_path / "sys/fs/cgroup/unified/b/cpu.max").unlink()
    assert cores.quota(root) == (3, "/sys/fs/cgroup/my cpu/a/cpu.cfs_quota_us")


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cores.quota(tmp_path) is None
    assert cores.quota(plant(tmp_path, "5:cpuset:/\n0::/", [], {})) is None


def test_hardware_threads_of_one_core_count_once(tmp_path, four_threads):
    root = plant(
        tmp_path, "0::/", [], {cores.SIBLINGS.format(thread): f"{thread % 2},{thread % 2 + 2}" for thread in range(4)}
    )
    assert cores.physical_cores(root) == [0, 1]
    assert (cores.for_arithmetic(root).number, cores.for_processes(root).number) == (2, 4)


def test_the_build_uses_as_many_jobs():
    assert incremental.num_jobs() == cores.for_processes().number


COUNTS = """
import os, numpy as np, fusionkit as fk
from fusionkit_backends.cpu import runtime, threads
from native import incremental
fk.fusion_rms_norm(np.ones((512, 1024), 'f'), np.ones(1024, 'f'))
print(runtime.native().num_threads(), incremental.num_jobs(), threads.check().found)
"""


@pytest.fixture
def cgroup():
    """A cgroup that allows half a core."""
    made = Path(f"/sys/fs/cgroup/cpu/fusionkit-{os.getpid()}")
    try:
        made.mkdir()
        (made / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"a cgroup of version 1 with the cpu controller: {error}")
    yield made
    made.rmdir()


def test_kernels_build_and_doctor_keep_within_a_real_cgroup(cgroup):
    def join():
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", COUNTS]
    done = subprocess.run(command, preexec_fn=join, env=environment, capture_output=True, text=True, timeout=HANGING)
    assert done.stdout == f"1 1 1 (a quota of 0.5 cores in {cgroup}/cpu.cfs_quota_us)\n", done.stderr
