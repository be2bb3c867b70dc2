"""The benchmark of a divided Llama's steps: the command, and what it refuses to report."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from examples.llama2_13b.bench import tensor_parallel as benchmark
from tests.hanging import HANGING
from tests.llama.conftest import EXAMPLE

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 64, "seq_len": 64}


def test_the_command_trains_both_ways_with_equal_losses(tmp_path):
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    command = [sys.executable, "-m", "examples.llama2_13b.bench.tensor_parallel", *flags, "--rounds", "2"]
    done = subprocess.run(
        [*command, "--warmup", "1", "--dtype", "float32", "--json", str(tmp_path / "steps.json")],
        capture_output=True,
        text=True,
        cwd=EXAMPLE.parents[1],
        timeout=HANGING,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no claim: " in done.stdout and "2 rounds, fewer than 10" in done.stdout
    ranks = json.loads((tmp_path / "steps.json").read_text())["ranks"]
    for rank in ranks:
        ops = {(op, backend): count for op, backend, _, count in rank["mc2"]["ops"][-1]}
        # Two layers with two products of each kind: of the one model, and not of the other.
        assert ops[("all_gather_matmul", "cpu")] >= 4 and ops[("matmul_reduce_scatter", "cpu")] >= 4
        assert rank["serial"]["ops"] == [[], []]
        for run in ("mc2", "serial"):
            assert len(rank[run]["losses"]) == 2 and len(rank[run]["seconds"]) == 2
    assert benchmark.require_same_losses(ranks, 1e-5) in (True, False)


def found(mc2, serial, other=None):
    def rank(losses):
        return {"mc2": {"losses": losses}, "serial": {"losses": serial}}

    return [rank(mc2), rank(other or mc2)]


@pytest.mark.parametrize(
    "results, words",
    [
        (found([3.0, 2.0], [3.0, 2.0], other=[3.0, 2.1]), "all ranks must have the same losses"),
        (found([3.0, 2.0], [3.0, 2.001]), "the losses must agree to 1e-05"),
        (found([3.0, 3.0], [3.0, 3.0]), "the model must learn"),
    ],
)
def test_losses_that_prove_nothing_end_it(results, words):
    with pytest.raises(SystemExit, match=words):
        benchmark.require_same_losses(results, 1e-5)


def test_a_claim_needs_the_whole_interval_and_no_objection():
    assert benchmark.require_same_losses(found([3.0, 2.0], [3.0, 2.0]), 1e-5)
    assert not benchmark.require_same_losses(found([3.0, 2.0], [3.0, np.nextafter(2.0, 3)]), 1e-5)
    assert benchmark.verdict(1.01, []) == "faster with MC2"
    assert benchmark.verdict(0.99, []) == "not shown to be faster with MC2"
    assert benchmark.verdict(1.5, ["the link is not shaped"]) == "no claim: the link is not shaped"
