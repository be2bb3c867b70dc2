"""The benchmark of hidden sums of gradients: the command, and what it refuses to report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from examples.llama2_13b.bench import data_parallel as benchmark
from examples.llama2_13b.bench.data_parallel_rank import Copy
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.parallel.mesh import Mesh
from tests.hanging import HANGING
from tests.llama.conftest import EXAMPLE

WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 64}
SIZES = WIDTHS | {"seq_len": 64}


def test_the_command_sums_in_all_ways_with_equal_gradients(tmp_path):
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    command = [sys.executable, "-m", "examples.llama2_13b.bench.data_parallel", *flags, "--rounds", "2"]
    done = subprocess.run(
        [*command, "--dtype", "float32", "--recompute", "full_attn", "--json", str(tmp_path / "rounds.json")],
        capture_output=True,
        text=True,
        cwd=EXAMPLE.parents[1],
        timeout=HANGING,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no claim: " in done.stdout and "2 rounds, fewer than 10" in done.stdout
    ranks = json.loads((tmp_path / "rounds.json").read_text())["ranks"]
    for rank in ranks:
        assert all(len(rank[way]["seconds"]) == 2 for way in benchmark.WAYS)
    benchmark.require_same_gradients(ranks)


def test_an_interrupted_run_reports_the_rounds_before(tmp_path):
    """At 13B's widths all rounds take two hours."""
    rounds = tmp_path / "rounds.json"
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    command = [sys.executable, "-m", "examples.llama2_13b.bench.data_parallel", *flags, "--rounds", "1000000"]
    process = subprocess.Popen(
        [*command, "--dtype", "float32", "--json", str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=EXAMPLE.parents[1],
    )
    try:
        wait_until(rounds.exists, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=HANGING)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    count = len(json.loads(rounds.read_text())["ranks"][0]["compute"]["seconds"])
    assert "what was measured until now follows" in errors
    assert f"{count} rounds" in output and "compute" in output


def wait_until(condition, process):
    ends = time.monotonic() + HANGING
    while not condition():
        assert process.poll() is None and time.monotonic() < ends, "no round has ended"
        time.sleep(0.05)


def test_no_gradient_is_held_after_a_way():
    """Else a backward pass has its memory twice: 2.5 GB for two layers of 13B."""
    config = LlamaConfig(max_position_embeddings=64, num_hidden_layers=1, rms_norm_eps=1e-5, **WIDTHS)
    copy = Copy(config, {"dtype": "float32", "seq_len": 64, "recompute": None}, 0, Mesh())
    copy.ways[benchmark.AFTER]()
    parameters = list(copy._model.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    copy.forget()
    assert all(parameter.grad is None for parameter in parameters)


def found(during, compute=0):
    sums = {way: {"gradients": [7, 7]} for way in benchmark.WAYS}
    return [sums | {"compute": {"gradients": [compute]}, "during": {"gradients": during}}]


@pytest.mark.parametrize(
    "results, words",
    [(found([7, 8]), "the same gradients, got 2 different"), (found([7, 7], compute=7), "must differ from their sum")],
)
def test_gradients_that_prove_nothing_end_it(results, words):
    with pytest.raises(SystemExit, match=words):
        benchmark.require_same_gradients(results)


def test_a_claim_needs_a_fair_ratio_and_times_that_add_up():
    assert benchmark.objections(0.6, 0.02) == []
    assert benchmark.objections(0.1, 0.0) == ["c must be in 0.3 to 0.9, got 0.10; change --seq_len"]
    assert benchmark.objections(0.6, -0.04) == ["Ts must be Tg + Tc to 3%, got -4.0%"]
