"""A run whose processes are killed again and again, and which goes on in other layouts, ends as if nobody had died.

`make test-kills` kills twenty times; a sample of two is in `make test`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest

from examples.llama2_13b.train.metrics import read_log
from tests.llama.test_pipeline_processes import apart, stage_of
from tests.llama.test_sft import assert_same_weights, losses, weights
from tests.llama.test_sft_processes import command, environment, launched, wait_until

# Processes and their layout; a step has four rows in each.
FOUR = {"gradient_accumulation_steps": 4}
LAYOUTS = [
    (1, FOUR),
    (2, {"gradient_accumulation_steps": 2}),
    (2, FOUR | {"tensor_parallel_degree": 2}),
    (2, FOUR | {"pipeline_parallel_degree": 2}),
    (2, {"sharding": "stage1", "gradient_accumulation_steps": 2}),
    (2, {"sharding": "stage2", "per_device_train_batch_size": 2}),
    (2, {"sharding": "stage3", "gradient_accumulation_steps": 2}),
    (4, FOUR | {"pipeline_parallel_degree": 2, "tensor_parallel_degree": 2}),
    (4, {"sharding": "stage1", "tensor_parallel_degree": 2, "gradient_accumulation_steps": 2}),
    (4, {"sharding": "stage3", "tensor_parallel_degree": 2, "gradient_accumulation_steps": 2, "async_save": True}),
]
FLAGS = {"learning_rate": 3e-4, "save_steps": 1, "resume_from_checkpoint": "auto", "max_length": 128}


@pytest.fixture
def run(tiny_folder, few_samples, tmp_path):
    """A run in a folder of that name, on a layout, with `command` or `launched` of other tests."""

    def make(start, name, layout, steps):
        processes, degrees = layout
        flags = FLAGS | degrees | {"dataset_name_or_path": few_samples, "max_steps": steps}
        return start(processes, tmp_path / name, tiny_folder, tmp_path / f"log-{name}", **flags)

    return make


def kill_once(words, processes, output, steps, chance):
    """Start the command and kill one of its processes, while it starts or after two or three steps."""
    log = output / "log.jsonl"
    before = log.stat().st_ino if log.exists() else 0
    victim, is_late = chance.randrange(processes), chance.random() < 0.75 and steps_of(log) < steps - 6
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        try:
            wait_until(lambda: rank_of(launcher.pid, victim), launcher)
            if is_late:  # a run that begins or goes on writes its log anew
                wait_until(lambda: log.exists() and log.stat().st_ino != before, launcher)
                wanted = steps_of(log) + chance.randint(2, 3)
                wait_until(lambda: steps_of(log) >= wanted, launcher)
            else:
                time.sleep(chance.uniform(0, 2))
            os.kill(rank_of(launcher.pid, victim), signal.SIGKILL)
            assert launcher.wait(timeout=240) != 0
        finally:
            launcher.kill()


def steps_of(log):
    return len(read_log(log)) if log.exists() else 0


def rank_of(launcher, rank):
    try:
        return stage_of(launcher, rank)
    except (AssertionError, OSError):  # not there yet
        return None


def end_of(run, output, kills, steps, layouts, chance):
    """Kill so often, each time in another layout where there are several; the last one runs to the end."""
    layout = None
    for number in range(kills + 1):
        layout = chance.choice([each for each in layouts if each is not layout or len(layouts) == 1])
        if number < kills:
            kill_once(run(command, output.name, layout, steps), layout[0], output, steps, chance)
            print(f"kill {number + 1}: {layout}, {steps_of(output / 'log.jsonl')} steps")
    code, logs = run(launched, output.name, layout, steps)
    assert code == 0, logs
    assert [line["step"] for line in read_log(output / "log.jsonl")] == list(range(1, steps + 1))


@pytest.mark.parametrize("kills, steps", [(2, 12), pytest.param(20, 50, marks=pytest.mark.full)])
def test_a_run_killed_in_changing_layouts_ends_as_one_process(run, tiny_folder, tmp_path, kills, steps):
    layouts = LAYOUTS if kills > 2 else [each for each in LAYOUTS if each[0] <= 2]
    end_of(run, tmp_path / "killed", kills, steps, layouts, random.Random(kills))
    code, logs = run(launched, "whole", LAYOUTS[0], steps)
    assert code == 0, logs
    ours, theirs = (losses(tmp_path / name) for name in ("killed", "whole"))
    print(f"relative difference of the losses: {np.abs(np.divide(ours, theirs) - 1).max():.1g}")
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # rounding grows from step to step
    first, expected = weights(tiny_folder), weights(tmp_path / "whole")
    assert apart(weights(tmp_path / "killed"), expected) < 1e-3 * apart(first, expected)


@pytest.mark.full
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[2], LAYOUTS[5]], ids=["one", "tensor2", "sharding2"])
def test_a_run_killed_in_one_layout_ends_as_the_undisturbed_one_bit_by_bit(run, tmp_path, layout):
    steps = 20
    end_of(run, tmp_path / "killed", 5, steps, [layout], random.Random(5))
    code, logs = run(launched, "whole", layout, steps)
    assert code == 0, logs
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
