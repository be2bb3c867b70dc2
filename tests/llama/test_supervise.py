"""A training command that dies is started again and goes on from its last checkpoint; one that was stopped is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from examples.llama2_13b.io import flags as flags_module
from examples.llama2_13b.sft import sft
from examples.llama2_13b.supervise import PROGRAM, SIGNALS, SuperviseFlags, supervise
from examples.llama2_13b.train import training_state
from tests.llama.conftest import EXAMPLE
from tests.llama.test_pipeline_processes import kill_second_of_two
from tests.llama.test_sft import assert_same_weights, interrupt_at, losses, weights
from tests.llama.test_sft_processes import command, environment, printed, wait_until

AUTO = ("--resume_from_checkpoint", "auto")
SUPERVISE = [sys.executable, "-m", PROGRAM]
# Writes a line for each start, and ends with the next of the given statuses; a negative one is a signal.
ENDS = """
import os, sys
starts, *statuses = sys.argv[1:-2]
with open(starts, "a") as file:
    file.write("started\\n")
status = int(statuses[len(open(starts).readlines()) - 1])
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def ends(tmp_path, *statuses):
    return sys.executable, "-c", ENDS, str(tmp_path / "starts"), *map(str, statuses), *AUTO


def starts(tmp_path):
    return len((tmp_path / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    "statuses, most, expected, started",
    [
        ([0], 3, 0, 1),
        ([1, -9, 0], 3, 0, 3),
        ([1, 1, 1, 0], 2, 1, 3),
        ([1, -9, 0], 1, 137, 2),
        ([7], 0, 7, 1),
        ([143, 0], 3, 143, 1),  # asked to stop by a signal to one of its processes
        ([130, 0], 3, 130, 1),
    ],
)
def test_what_fails_is_started_again_so_often(tmp_path, capfd, statuses, most, expected, started):
    assert supervise(SuperviseFlags(ends(tmp_path, *statuses), most)) == expected
    assert starts(tmp_path) == started
    told = capfd.readouterr().err
    assert told.count("started again") == sum(status not in (0, 130, 143) for status in statuses[:started])
    left = [int(number) for number in re.findall("started again, ([0-9]+) more times", told)]
    assert left == [most - number for number in range(1, started)]


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_command_which_is_not_started_again(tmp_path, number):
    code = (
        "import signal, sys, time; signal.signal(int(sys.argv[1]), lambda *_: sys.exit(5)); "
        "print('ready', flush=True); time.sleep(100)"
    )
    words = [*SUPERVISE, "--", sys.executable, "-c", code, str(int(number)), *AUTO]
    with subprocess.Popen(words, cwd=EXAMPLE.parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "" and process.wait(timeout=60) == 5


@pytest.mark.parametrize("number", [1, 2], ids=["first", "second"])
def test_a_signal_in_the_midst_of_a_start_goes_to_the_command(tmp_path, monkeypatch, number):
    """It comes when there is a process that nobody knows yet. Else `supervise` would end and leave the command."""
    started = []

    class Start(subprocess.Popen):
        def __init__(self, command, **options):
            ends = "raise SystemExit(1)" if len(started) + 1 < number else "import time; time.sleep(100)"
            super().__init__([sys.executable, "-c", ends], **options)
            started.append(self)
            if len(started) == number:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Start)
    before = signal.getsignal(signal.SIGTERM)
    assert supervise(SuperviseFlags(("sft.py", *AUTO), 3)) == 128 + signal.SIGTERM
    assert len(started) == number and signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_at_a_terminal_does_not_reach_the_command_twice():
    """A terminal sends it to all processes of a group. A second one would end a run before it has saved."""
    code = "import os, sys; sys.exit(5 if os.getpgrp() == os.getpgid(os.getppid()) else 0)"
    assert supervise(SuperviseFlags((sys.executable, "-c", code, *AUTO), 0)) == 0


def test_a_signal_that_nohup_ignores_stops_nothing(tmp_path):
    """And afterwards every signal is handled as before."""
    code = """
import os, signal, sys, time
open(sys.argv[1], "a").write("started\\n")
os.kill(os.getppid(), signal.SIGHUP)
time.sleep(0.2)
sys.exit(1)
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        assert supervise(SuperviseFlags((sys.executable, "-c", code, str(tmp_path / "starts"), *AUTO), 1)) == 1
        assert starts(tmp_path) == 2 and [signal.getsignal(number) for number in SIGNALS] == handlers
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_command_that_resumes_is_supervised(tmp_path):
    flags = tmp_path / "flags.json"
    for content, given in (('{"resume_from_checkpoint": "auto"}', ()), ("{}", AUTO), ("[", AUTO)):
        flags.write_text(content)
        assert SuperviseFlags(("python", "sft.py", str(flags), *given)).max_restarts == 3
    flags.write_text('{"resume_from_checkpoint": "auto"}')
    for refused in (("sft.py", str(flags), "--resume_from_checkpoint=last"), ("sft.py", "auto"), ("sft.py", "no.json")):
        with pytest.raises(ValueError, match="must be a training command with --resume_from_checkpoint auto, got sft"):
            SuperviseFlags(refused)
    with pytest.raises(ValueError, match="a training command must be given after --, got none"):
        flags_module.parse(SuperviseFlags, ["--max_restarts", "2"], PROGRAM)
    with pytest.raises(ValueError, match="--max_restarts must be at least 0, got -1"):
        flags_module.parse(SuperviseFlags, ["--max_restarts=-1", "--", "sft.py", *AUTO], PROGRAM)


@pytest.mark.usefixtures("no_measuring", "no_drawing")
def test_auto_starts_or_goes_on(sft_flags, tmp_path, monkeypatch):
    """A run that died before its first checkpoint leaves a log, which begins again."""
    whole, output = tmp_path / "whole", tmp_path / "run"
    sft(sft_flags(output_dir=str(whole)))
    output.mkdir()
    (output / "log.jsonl").write_text('{"step": 1, "loss": 100}\n')
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        assert sft(sft_flags(resume_from_checkpoint="auto")) == 128 + signal.SIGTERM
    assert losses(output) == losses(whole)[:4]
    assert [path.name for path in training_state.checkpoints(output)] == ["checkpoint-4"]
    assert sft(sft_flags(resume_from_checkpoint="auto")) == 0
    assert losses(output) == losses(whole)
    assert_same_weights(whole, output)
    with pytest.raises(ValueError, match="--output_dir must hold no run or model yet"):
        sft(sft_flags(output_dir=str(whole), resume_from_checkpoint="auto"))


@pytest.mark.usefixtures("no_measuring", "no_drawing")
def test_auto_ends_well_after_the_last_checkpoint(sft_flags, tmp_path):
    """Else a process that dies in the last moment would be started again in vain."""
    output = tmp_path / "run"
    sft(sft_flags(save_steps=3, resume_from_checkpoint="auto"))
    whole, expected = losses(output), weights(output)
    for path in output.glob("model*.safetensors*"):
        path.unlink()
    report = (output / "report.html").read_bytes()  # of steps that were measured
    assert sft(sft_flags(save_steps=3, resume_from_checkpoint="auto")) == 0
    assert (output / "report.html").read_bytes() == report
    (output / "report.html").unlink()
    assert sft(sft_flags(save_steps=3, resume_from_checkpoint="auto")) == 0
    assert "Ended with step 6 of 6." in (output / "report.html").read_text()
    assert losses(output) == whole and len(whole) == 6
    assert all(np.array_equal(value, expected[name]) for name, value in weights(output).items()) and expected
    for given, steps in (("last", 6), ("auto", 5)):
        with pytest.raises(ValueError, match=f"--max_steps must be above the checkpoint's step 6, got {steps}"):
            sft(sft_flags(max_steps=steps, resume_from_checkpoint=given))


@pytest.mark.usefixtures("no_measuring", "no_drawing")
def test_a_killed_rank_is_named_and_the_job_ends_as_if_it_had_lived(tiny_folder, few_samples, sft_flags, tmp_path):
    """Two stages: their losses are those of one process bit by bit."""
    output, log, told = tmp_path / "two", tmp_path / "log", tmp_path / "told"
    flags = {"dataset_name_or_path": str(few_samples), "max_steps": 24, "save_steps": 5}
    divided = {"pipeline_parallel_degree": 2, "resume_from_checkpoint": "auto"}
    words = [*SUPERVISE, "--max_restarts", "1", "--", *command(2, output, tiny_folder, log, **flags, **divided)]
    with (
        told.open("w") as file,
        subprocess.Popen(words, cwd=EXAMPLE.parents[1], env=environment(), stdout=file, stderr=file) as process,
    ):
        try:
            wait_until(lambda: training_state.checkpoints(output), process)
            kill_second_of_two(child_of(process.pid), process)
            wait_until(lambda: "supervise: " in told.read_text(), process)
            assert "rank 1 must answer" in printed(log), printed(log)
            assert process.wait(timeout=240) == 0, printed(log)
        finally:
            process.terminate()
    assert told.read_text().count("started again, 0 more times if need be") == 1
    alone = flags | {"max_length": 255, "warmup_steps": 0, "output_dir": str(tmp_path / "one")}
    assert sft(sft_flags(**alone)) == 0
    assert losses(output) == losses(tmp_path / "one")
    assert_same_weights(tmp_path / "one", output)


def child_of(process):
    with open(f"/proc/{process}/task/{process}/children") as children:
        return int(children.read().split()[0])
