"""Which process stands where, and which processes are one group: by the rule of fleet's topology, and by its code."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paddle.distributed.fleet.base.topology import CommunicateTopology

from examples.llama2_13b.parallel.degrees import Degrees
from tests.emulator.emulated import run
from tests.hanging import HANGING
from tests.launch import LAUNCH

ROOT = Path(__file__).parents[2]

THEIRS = {"data": "data", "pipeline": "pipe", "sharding": "sharding", "tensor": "model"}


@pytest.mark.parametrize("degrees", [(1, 1, 1, 8), (2, 1, 2, 2), (1, 2, 2, 2), (3, 2, 1, 2), (2, 2, 2, 2)])
def test_ranks_stand_where_fleets_topology_puts_them(degrees):
    ours = Degrees(*degrees)
    theirs = CommunicateTopology(list(THEIRS.values()), list(degrees))
    for rank in range(ours.processes):
        places = ours.places(rank)
        assert rank == theirs.get_rank(**{THEIRS[axis]: place for axis, place in places.items()})
        for count in (1, 2, 4):
            for axes in itertools.combinations(THEIRS, count):
                groups = theirs.get_fused_ranks([THEIRS[axis] for axis in axes])
                (group,) = [sorted(group) for group in groups if rank in group]
                assert ours.group(rank, *axes) == group


def test_data_takes_what_the_flags_leave():
    assert Degrees.of("sft", 8) == Degrees(data=8)
    assert Degrees.of("sft", 8, tensor=2, sharding=2) == Degrees(data=2, sharding=2, tensor=2)
    assert Degrees.of("sft", 8, tensor=2, sharding=-1, pipeline=2) == Degrees(pipeline=2, sharding=2, tensor=2)


@pytest.mark.parametrize(
    "processes, asked, rule, nearest",
    [
        (1, {"tensor": 2}, "--tensor_parallel_degree must be .* 1, got 2", "--tensor_parallel_degree 1"),
        (8, {"tensor": 3}, "--tensor_parallel_degree must be .* 8, got 3", "--tensor_parallel_degree 4"),
        (6, {"sharding": 5}, "--sharding_parallel_degree must be .* 6, got 5", "--sharding_parallel_degree 6"),
        (8, {"tensor": 8, "sharding": 2}, "tensor_parallel_degree x --sharding_parallel_degree must be .* 8, got 8 x 2",
         "--tensor_parallel_degree 4 --sharding_parallel_degree 2"),
        (12, {"tensor": 2, "pipeline": 4}, "got 2 x 4", "--tensor_parallel_degree 2 --pipeline_parallel_degree 3"),
    ],
)  # fmt: skip
def test_degrees_that_do_not_divide_the_processes_are_refused_with_the_nearest_that_do(processes, asked, rule, nearest):
    with pytest.raises(ValueError, match=f"sft: .*{rule}.* nearest for so many is {nearest}. .*launch"):
        Degrees.of("sft", processes, **asked)


@pytest.mark.parametrize(
    "processes, asked, have", [(1, {}, "one process has"), (8, {"tensor": 4, "pipeline": 2}, "the 8 processes have")]
)
def test_sharding_between_nobody_is_refused(processes, asked, have):
    """The flag would have no effect. One that was meant for several processes may have been started without them."""
    with pytest.raises(ValueError, match=f"sft: --sharding must be left out where {have} one copy.*{2 * processes}: "):
        Degrees.of("sft", processes, sharding=-1, **asked)


def answers(folder, launch, *degrees):
    words = [LAUNCH, *launch, "--log_dir", str(folder)]
    words += [str(Path(__file__).with_name("mesh_program.py")), *map(str, degrees)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if "--devices" in launch:
        options = ("--devices", str(launch[-1].count(",") + 1), "--timeout", "120")
        done = run("npu", sys.executable, *words, options=options, **environment)
    else:
        settings = os.environ | environment
        done = subprocess.run([sys.executable, *words], env=settings, capture_output=True, text=True, timeout=HANGING)
    logs = [path.read_text() for path in sorted(folder.glob("workerlog.*"))]
    assert done.returncode == 0, done.stderr[-1000:] + "".join(log[-3000:] for log in logs)
    found = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"rank"')]
    return sorted(found, key=lambda answer: answer["rank"])


@pytest.mark.parametrize(
    "launch, tensor", [(["--nproc_per_node", "4"], 1), (["--devices", "0,1,2,3,4,5,6,7"], 2)], ids=["cpu4", "npu8"]
)
def test_data_and_sharding_share_out_the_rows(tmp_path, launch, tensor):
    """Two of data, two of sharding, and on devices two of tensor: four copies."""
    found = answers(tmp_path, launch, tensor, 2)
    assert [answer["rank"] for answer in found] == list(range(4 * tensor))
    for answer in found:
        copy, part = divmod(answer["rank"], tensor)
        assert answer["copy"] == [copy, 4] and answer["share"] == list(range(10))[copy::4]
        assert answer["first"] == (answer["rank"] == 0) and answer["any"] == [True, False]
        ranks = [other * tensor + part for other in range(4)]  # with the same part of the other copies
        owns = copy % 2 == 0  # the one parameter goes to the first rank of sharding
        assert answer["totals"] == [sum(ranks), 4] and answer["gradient"] == ([sum(ranks) / 4] if owns else None)
