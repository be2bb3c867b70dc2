"""bench_gpu.py on the CPU, interpreted, so that the script cannot rot; and its judgements, by figures made up here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from fusionkit_backends.gpu.benchmark import clock, parity, targets

from fusionkit.ops import load_spec
from tests.gpu.conftest import ONE_ORDER
from tests.hanging import HANGING

SCRIPT = Path(__file__).parents[2] / "backends" / "gpu" / "bench_gpu.py"


PIECES = ("parity", "decode", "memory", "cross_entropy", "attention", "tiles", "layer", "step", "cold_start")


def test_a_dry_run_goes_through_each_piece(tmp_path):
    """In one process: what it loads takes as long as most pieces."""
    written = tmp_path / "gpu.json"
    command = [sys.executable, SCRIPT, "--dry-run", "--json", written, "--charts", tmp_path, "--only", *PIECES]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment | ONE_ORDER, capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(written.read_text())
    assert set(PIECES) <= set(found)
    for name, piece in found.items():
        assert piece["rows"], name
        assert "none: interpreted" in piece["machine"]["card"]
        for row in piece["rows"]:
            ours = str(row.get("contestant", "fusionkit")).startswith("fusionkit")
            assert not (ours and "reason" in row.get("outcome", {})), row
    promises = done.stdout[done.stdout.index("promises:") :].splitlines()[1:]
    assert sum(line.startswith("  not run") for line in promises) == len(targets.PROMISES)


def test_cases_with_other_arguments_than_the_kernels_are_left_out():
    """Their errors would read like wrong results."""
    for op in parity.CHECKED:
        spec = load_spec(op)
        small = [case for case in spec.cases if not case.llama]
        left_out = [case.name for case in small if not parity.takes(spec, case)]
        expected = [case.name for case in small if "window" in case.name or "int8" in case.name]
        assert left_out == (expected if op == "paged_attention" else []), op


def script():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrong_results_are_counted():
    assert script().wrong([{"share": 0.4}, {"share": 1.2}, {"share": float("nan")}, {"error": "CUDA"}]) == 3


def row(call, contestant, time, share=None, direction="forward"):
    outcome = {"median_us": time, "low_us": time * 0.99, "high_us": time * 1.01, "rounds": 15}
    return {"call": call, "direction": direction, "contestant": contestant, "outcome": outcome, "share": share}


def verdicts(pieces):
    return {promise: verdict for promise, verdict, _ in targets.judged(pieces, dry_run=False)}


def test_promises_are_judged_by_the_figures():
    memory = [row(f"{op} S2048", "fusionkit", 10, 0.93) for op in targets.MEMORY_OPS]
    memory += [row("swiglu S2048", "torch.compile", 11)]
    attention = [
        row("S2048-causal", "fusionkit", 10),
        row("S2048-causal", "fusionkit, own kernel", 14),
        row("S2048-causal", "SDPA flash", 10),
        row("S2048-documents-of-9", "fusionkit", 10),
        row("S2048-documents-of-9", "SDPA math", 30),
    ]
    found = verdicts({"memory": {"rows": memory}, "attention": {"rows": attention}})
    by_word = {
        word: verdict for promise, verdict in found.items() for word in promise.split() if word in ("92%", "88%", "75%")
    }
    assert by_word == {"92%": "reached", "88%": "not run", "75%": "missed"}
    assert found["... never slower than Liger-Kernel or torch.compile"] == "reached"
    assert found["... packed documents >= 2x masked SDPA"] == "reached"
    assert found["flash_attention: at least the best of SDPA's backends at every size"] == "reached"
    attention[0] = row("S2048-causal", "fusionkit", 11)
    found = verdicts({"attention": {"rows": attention}})
    assert found["flash_attention: at least the best of SDPA's backends at every size"] == "missed"


def test_the_interval_of_the_median_encloses_it():
    timing = clock._timing([float(value) for value in range(15)])
    assert (timing.low_us, timing.median_us, timing.high_us) == (3.0, 7.0, 11.0)
    assert clock._timing([4.0, 2.0]).median_us == 3.0


def test_a_contestant_that_fails_is_named_and_the_others_are_timed():
    def broken():
        raise RuntimeError("No available kernel")

    outcomes = clock.measure({"broken": broken, "fine": lambda: None}, 3)
    assert "No available kernel" in outcomes["broken"].reason
    assert outcomes["fine"].rounds == 3
