"""`plan train --verify`: plans run, what fails is told, what was measured decides, and nothing is left behind."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fusionkit_planner import dominance, known_rates, search, train_chart, train_command
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout
from fusionkit_planner.rates import Level, Rates
from fusionkit_planner.search import Plan, Question
from fusionkit_planner.training_time import StepTime
from fusionkit_planner.verify import command as verification
from fusionkit_planner.verify import commands, material, measured, place, reading, report, run
from fusionkit_planner.verify.commands import Launch
from fusionkit_planner.verify.measured import Correction, Measured
from fusionkit_planner.verify.place import Place
from fusionkit_planner.verify.processes import Running, marked

from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.io import flags as command_flags
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.sft import SftFlags, read_samples
from fusionkit.cli import main
from tests.emulator.emulated import FUSIONKIT
from tests.hanging import HANGING
from tests.launch import LAUNCH
from tests.prose import ROOT

TINY = ROOT / "examples/llama2_13b/configs/tiny.json"
STAND_IN = Path(__file__).with_name("training_stand_in.py")
SMALL = Architecture("small", 64, 4, 4, 2, 16, 160, 500)
# A slow link, so that sharding's stage 3, which sends most, comes last.
RATES = Rates("invented", "bfloat16", 1e12, 1e11, 64e9, levels=(Level("node", 8, 1e7, 0.0),))
QUESTION = Question(SMALL, RATES, 2, 4, 64, 64e9)
HOST = Place("cpu", "a processor", False)


def plan(seconds: float, **layout: object) -> Plan:
    return Plan(Layout(**layout), 1e9, StepTime(seconds, seconds, 0.0, 0.0, 0.0, 0.0))


@pytest.fixture
def rates_file(tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(RATES.as_json()))
    return file


@pytest.fixture
def complete_model(tmp_path):
    """Files that a stand-in does not read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(TINY.read_text())
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def train(model: Path, rates: Path, *options: object) -> list[str]:
    sizes = ["--devices", "2", "--global-batch", "4", "--sequence", "64"]
    return ["plan", "train", "--model", str(model), "--device", str(rates), *sizes, *map(str, options)]


# Correction and order, by hand.


def runs() -> list[Measured]:
    """Simulated 1, 2 and 4 s; the first fails, the others take 12 and 6 s after a first step of 50 s."""
    plans = [plan(1.0, tensor=2), plan(2.0, data=2), plan(4.0, pipeline=2)]
    failed = Measured(plans[0], 1, reason="out of memory")
    return [failed, *(
        Measured(one, place, (50.0, seconds - 1, seconds, seconds + 2), (1e9, 2e9))
        for one, place, seconds in ((plans[1], 2, 12.0), (plans[2], 3, 6.0))
    )]  # fmt: skip


def test_one_factor_corrects_all_times_and_measurement_decides_the_order():
    """12 / 2 and 6 / 4 have the geometric mean 3."""
    done = runs()
    plans = [*(each.plan for each in done), plan(5.0, data=2, micro_batch=2), plan(6.0, data=2, micro_batch=3)]
    found = measured.verified(QUESTION, plans, done, is_host=True)
    assert done[1].seconds == 12.0 and done[0].seconds is None
    assert found.correction.time == pytest.approx(3.0)
    assert [place for _, place in found.order] == [3, 2, 4, 5, 1]
    assert found.best is plans[2] and not measured.same_order(done)
    assert found.correction.seconds(plans[3]) == pytest.approx(15.0)
    assert list(measured.errors(done, found.correction)) == [
        pytest.approx((2 / 12 - 1, 6 / 12 - 1)), pytest.approx((4 / 6 - 1, 12 / 6 - 1))
    ]  # fmt: skip
    text = report.text(QUESTION, HOST, found)
    table = text.split("\n\n")[1].splitlines()
    assert [line.split()[1] for line in table[1:]] == ["3", "2", "4", "5", "1"]
    assert [re.split(r"  +", line)[10] for line in table[1:]] == ["6", "12", "-", "-", "failed"]
    assert "simulated x 3.000" in text and "The measured order is 3, 2, by places in the simulation" in text
    assert "Failed: plan 1, tensor 2" in text and "out of memory" in text
    assert "Largest error of a step's time: simulated 83.3%, corrected 100.0%" in text


class Axes:
    """Keeps what is drawn."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def scatter(self, x: list[float], y: list[float], **_: object) -> None:
        self.points += zip(x, y, strict=True)


def test_the_chart_marks_what_was_measured_on_the_bars_of_its_plan(tmp_path):
    done = runs()
    found = measured.verified(QUESTION, [each.plan for each in done], done, is_host=True)
    left, right = Axes(), Axes()
    assert train_chart._marks(left, right, (0, 2, 1), found.marks) == 12.0  # the second bar is the third plan
    assert left.points == [(2.0, 1), (2.0, 2)] and right.points == [(6.0, 1), (12.0, 2)]
    rehearsed = {1: (3e9, None)}
    assert train_chart._marks(left, right, (0, 1), rehearsed) == 0.0
    assert left.points[-1] == (3.0, 1) and len(right.points) == 2
    train_chart.draw(tmp_path / "plan.png", search.search(QUESTION), found.marks)
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


def test_a_shaped_link_is_the_simulated_one_without_headers():
    def rates_of(*words: str) -> Rates:
        parser = argparse.ArgumentParser()
        train_command.add_arguments(parser)
        options = parser.parse_args(["--model", "m", "--device", "910b", "--devices", "2", *words])
        return known_rates.find("910b", *verification.links(options))

    level = rates_of("--shape", "400mbit").level(2)
    assert level.bandwidth == pytest.approx(0.96 * 50e6) and level.latency == 0
    assert rates_of("--shape", "400mbit").sources["level of 2"] == "--shape 400mbit, less headers"
    assert rates_of("--shape", "400mbit", "--link", "2:1").level(2).bandwidth == 1e9


def test_a_plan_that_was_not_run_and_may_be_faster_is_named():
    done = [
        Measured(plan(1.0, tensor=2), 1, (9.0, 4.0), (1e9, 1e9)),
        Measured(plan(1.1, data=2), 2, (9.0, 1.1), (1e9,)),
    ]
    others = [plan(1.2, data=2, micro_batch=2), plan(0.4, data=2, micro_batch=4)]
    found = measured.verified(QUESTION, [*(each.plan for each in done), *others], done, is_host=True)
    assert "faster than the best run by the corrected times: 1 plans, among them 4." in report.text(
        QUESTION, HOST, found
    )


@pytest.mark.parametrize("is_host", [True, False])
def test_memory_is_corrected_by_a_constant_on_the_host_and_by_a_factor_on_devices(is_host):
    layouts = [Layout(data=2), Layout(tensor=2)]
    predicted = [max(measured.predicted_peaks(QUESTION, one)) for one in layouts]
    peaks = [size + 3e8 if is_host else size * factor for size, factor in zip(predicted, (1.5, 6.0), strict=True)]
    done = [Measured(Plan(one, 1e9, plan(1.0).time), 1, (1.0, 1.0), (1.0, peak))
            for one, peak in zip(layouts, peaks, strict=True)]  # fmt: skip
    found = measured.correction(QUESTION, done, is_host)
    if is_host:
        assert found.beside == pytest.approx(3e8) and found.memory is None
        assert found.peak(1e9) == pytest.approx(1.3e9)
    else:
        assert found.memory == pytest.approx(3.0) and found.beside is None
        assert found.peak(1e9) == pytest.approx(3e9)


def test_ranks_have_the_memory_of_their_stage_in_the_order_of_the_example():
    question = Question(SMALL, RATES, 8, 8, 64, 64e9)
    one = Layout(tensor=2, pipeline=2, data=1, sharding=2, stage=1, sequence_parallel=True)
    degrees = Degrees(one.data, one.pipeline, one.sharding, one.tensor)
    found = measured.predicted_peaks(question, one)
    stages = {degrees.places(rank)["pipeline"]: found[rank] for rank in range(8)}
    assert stages[0] != stages[1]
    assert found == [stages[degrees.places(rank)["pipeline"]] for rank in range(8)]


def test_of_each_way_the_best_plan_is_chosen():
    answer = search.search(QUESTION)
    best, ways = run.chosen(answer.plans, 4), run.chosen(answer.plans, 9, of_each_way=True)
    assert [at - 1 for _, at in best] == [at for at, _ in dominance.listed(answer.plans, 4)]
    assert len(ways) == 6 and [at for _, at in ways] == sorted(at for _, at in ways)
    assert {(one.layout.tensor, one.layout.pipeline, one.layout.data, one.layout.stage) for one, _ in ways} == {
        (2, 1, 1, 0), (1, 2, 1, 0), (1, 1, 2, 0), (1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 3)
    }  # fmt: skip


def test_plans_that_are_simulated_alike_are_left_out():
    plans = [plan(seconds, data=2, micro_batch=number) for number, seconds in enumerate((1.0, 1.1, 1.2, 1.3, 1.5), 1)]
    assert [at for _, at in run.chosen(plans, 9, apart=0.2)] == [1, 3, 5]
    assert [at for _, at in run.chosen(plans, 9, of_each_way=True, apart=0.2)] == [1]


def test_nothing_measured_corrects_nothing():
    assert measured.correction(QUESTION, [], True) == Correction()
    found = measured.verified(QUESTION, [plan(1.0)], [], True, signal.SIGINT)
    assert found.best is None and "Stopped after 0 runs." in report.text(QUESTION, HOST, found)


# What a run left.


TRACE = """
Traceback (most recent call last):
  File "sft.py", line 3, in <module>
    begin()
ZeroDivisionError: division by zero
"""
PADDLE = (
    "----\nError Message Summary:\n----\nResourceExhaustedError: \n\nOut of memory error on npu:0. Cannot allocate\n\n"
)


@pytest.mark.parametrize(
    "logs, launcher, reason",
    [
        (["100%\nerror: sft: --x must be 1, got 2\n", ""], "", "sft: --x must be 1, got 2"),
        ([TRACE, "RuntimeError: rank 0 has ended"], "", "ZeroDivisionError: division by zero"),
        (["RuntimeError: rank 1 has ended", TRACE], "", "ZeroDivisionError: division by zero"),
        ([PADDLE], "", "ResourceExhaustedError: Out of memory error on npu:0. Cannot allocate"),
        (
            ["RuntimeError: all_reduce: rank 1 has ended"],
            "Container rank 1 status failed cmd ['python'] code -9 log x",
            "rank 1 was killed by signal 9: the host may have run out of memory",
        ),
        (["RuntimeError: rank 1 has ended"], "Exit code 1", "RuntimeError: rank 1 has ended"),
        (["", ""], "LAUNCH\nNo module named paddle\n", "No module named paddle"),
        ([], "", "it said nothing"),
    ],
)
def test_a_reason_is_what_the_failed_rank_says_itself(tmp_path, logs, launcher, reason):
    for rank, text in enumerate(logs):
        (tmp_path / f"log{rank}").mkdir()
        (tmp_path / f"log{rank}" / f"workerlog.{rank}").write_text(text)
    (tmp_path / "launch.log").write_text(launcher)
    assert reading.reason(tmp_path, []) == reason


def test_a_line_that_is_being_written_counts_when_it_is_whole(tmp_path):
    assert reading.step_seconds(tmp_path) == [] and reading.peaks(tmp_path) == []
    (tmp_path / "log.jsonl").write_text('{"step": 1, "seconds": 2.5}\n{"step": 2, "sec')
    assert reading.step_seconds(tmp_path) == [2.5]


# Commands and what they are given.


def test_the_commands_of_each_place(tmp_path):
    def words(launch: Launch) -> list[str]:
        return [" ".join(each) for each in launch.commands(Path("/x/sft.py"), Path("/x/flags.json"), tmp_path)]

    (host,) = words(Launch(HOST, 2, 1e9))
    assert f"--nproc_per_node 2 --log_dir {tmp_path}/log /x/sft.py /x/flags.json" in host
    (cards,) = words(Launch(Place("npu", "910B", False), 4, 1e9))
    assert "--devices 0,1,2,3 --log_dir" in cards and "emulate" not in cards
    (emulated,) = words(Launch(Place("npu", "910B", True), 2, 64e9))
    assert "emulate npu --rehearse --devices 2 --memory 62500000.000KiB --report" in emulated
    assert emulated.index(" -- ") < emulated.index("paddle.distributed.launch --devices 0,1")
    hosts = words(Launch(HOST, 2, 1e9, "200mbit"))
    assert [each.startswith("unshare --net") and f"--rank {rank} " in each for rank, each in enumerate(hosts)] == [1, 1]
    assert "OMP_NUM_THREADS" not in Launch(Place("npu", "x", True), 2, 1e9).environment().keys() - os.environ.keys()


def test_the_words_fill_every_row(tmp_path):
    """By the example's own tokenizer and packing: as many rows as a step has, each of `sequence` tokens."""
    material.write_data(tmp_path / "data", 6, 64)
    file = tmp_path / "flags.json"
    given = {"model_name_or_path": "m", "dataset_name_or_path": str(tmp_path / "data"), "output_dir": "o"}
    file.write_text(json.dumps({**given, "max_length": 64, "zero_padding": True}))
    flags = command_flags.parse(SftFlags, [str(file)], "sft").within(256)
    config = LlamaConfig.from_json(str(TINY))
    lines = (tmp_path / "data" / "train.json").read_text().splitlines()
    tokenizer = Tokenizer.train([json.loads(each)["tgt"] for each in lines], config)
    batches = flags.batches(read_samples(flags, "train", tokenizer, None), 0)
    rows = list(batches.rows())
    assert len(rows) == 6
    (batch,) = batches.of(rows, 6, 1)
    assert batch.input_ids.shape[0] == 6 and list(batch.document_lengths) == [63] * 6  # before the shift: 64


@pytest.mark.parametrize(
    "options, message",
    [
        (["--verify", "0"], "--verify must be at least 1, got 0"),
        (["--verify", "2", "--steps", "1"], "--steps must be at least 2, for the first does not count, got 1"),
        (["--verify", "2", "--limit", "0"], "--limit must be above 0, got 0"),
        (["--verify", "2", "--data", "nowhere"], "--data must be a folder with train.json, got nowhere"),
        (["--verify", "2", "--entry", "nothing.py"], "--entry must be the file of a training command"),
        (["--verify", "2", "--entry", str(STAND_IN)], "--model must be a folder with weights and a tokenizer, got one"),
        (["--verify", "2", "--apart", "-1"], "--apart must be at least 0, got -1"),
        (["--ways"], "--ways must be given with --verify, got none"),
        (["--verify", "2", "--shape", "fast"], "--shape must be a rate such as 200mbit or 1gbit, got 'fast'"),
        (["--verify", "2", "--device", "a100", "--devices", "8", "--global-batch", "8"],
         r"for devices that are here or emulated \(gcu, npu\), got A100.*Paddle finds cpu here"),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused_before_the_search(options, message, rates_file, monkeypatch, capsys):
    monkeypatch.setattr(place, "about", lambda: {"device": "cpu", "name": "a processor"})
    monkeypatch.setattr(search, "search", lambda *_: pytest.fail("it searched"))
    assert main(train(TINY, rates_file, *options)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_the_repository_the_training_command_must_be_given(monkeypatch):
    monkeypatch.setattr(place, "ENTRY", Path("examples/none/sft.py"))
    with pytest.raises(
        ValueError, match="--entry must be given with --verify, got none; .*Clone fusionkit's repository"
    ):
        place.entry(None)


@pytest.mark.parametrize("which", ["memory", "disk"])
def test_random_weights_that_have_no_room_are_refused(which, monkeypatch, tmp_path):
    if which == "memory":
        monkeypatch.setattr(material, "available_bytes", lambda: 1e6)
    else:
        monkeypatch.setattr(material.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(ValueError, match=f"GB of free {which}.* for random weights, got 0.0 GB"):
        material.require_room(SMALL, tmp_path)


class Full:
    free = 1e6


def test_a_plan_for_which_the_host_has_no_memory_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "available_bytes", lambda: 2.9e9)
    wanted = run.Wanted(tmp_path, None, STAND_IN, Launch(HOST, 2, 4e9), 2, 60)
    one = run.Run(QUESTION, plan(1.0), 1, wanted, tmp_path, tmp_path, tmp_path / "none")
    assert one.measured(print).reason == "not run: 2 processes need 3.0 GB, and 2.9 GB are free"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "steps, peaks, lacking",
    [
        ((1.0,), (1.0, 1.0), "log.jsonl must have `seconds` of 2 steps, got 1"),
        ((1.0, 1.0), (1.0,), "report.json must have the memory of 2 ranks, got 1"),
        ((1.0, 1.0), (1.0, 1.0), ""),
    ],
)
def test_a_run_that_ends_well_and_tells_too_little_has_failed(steps, peaks, lacking, tmp_path):
    wanted = run.Wanted(tmp_path, None, STAND_IN, Launch(HOST, 2, 4e9), 2, 60)
    one = run.Run(QUESTION, plan(1.0), 1, wanted, tmp_path, tmp_path, tmp_path)
    assert one._lacking(Measured(plan(1.0), 1, steps, peaks)) == lacking


# Processes.


def test_whatever_a_command_started_ends_with_the_block_and_a_limit_is_kept(tmp_path):
    """One process has left the session, one ignores what can be ignored."""
    script = "setsid sleep 600 & trap '' TERM INT HUP; echo $! > child; sleep 600"
    with (tmp_path / "log").open("wb") as log, Running([["sh", "-c", script]], log, os.environ, tmp_path) as running:
        assert not running.wait(0.5, lambda: None)
        mark = running._mark
        while not (tmp_path / "child").exists() or len(marked(mark)) < 3:
            time.sleep(0.05)
    assert marked(mark) == [] and running.failed


def test_a_command_that_fails_ends_those_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit_planner.verify.processes.GRACE_SECONDS", 0.2)
    both = [["sleep", "600"], ["sh", "-c", "exit 3"]]
    with (tmp_path / "log").open("wb") as log, Running(both, log, os.environ, tmp_path) as running:
        assert running.wait(600, lambda: None) and running.failed


def is_running(number: str) -> bool:
    """One that has ended may wait for its new parent, the system's first process, to be told."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_runs_that_fail_are_told_and_ctrl_c_keeps_what_was_measured(rates_file, complete_model, tmp_path):
    """Paddle's launcher, six ways of two processes: three are timed, two fail, and the last one is interrupted."""
    folders = {name: tmp_path / name for name in ("temporary", "sleeping", "plan.json", "flags.json")}
    folders["temporary"].mkdir()
    options = ["--verify", 6, "--ways", "--entry", STAND_IN, "--json", folders["plan.json"]]
    command = [*FUSIONKIT, *train(complete_model, rates_file, *options, "--write", folders["flags.json"])]
    own = {"TMPDIR": str(folders["temporary"]), "SLEEPING": str(folders["sleeping"])}
    with subprocess.Popen(command, env={**os.environ, **own}, stdout=-1, stderr=-1, text=True) as process:
        until = time.monotonic() + HANGING
        while not folders["sleeping"].exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANGING)
    assert process.returncode == 128 + signal.SIGINT, out + err
    assert not list(folders["temporary"].glob("fusionkit-verify-*"))
    assert not is_running(folders["sleeping"].read_text())
    found = json.loads(folders["plan.json"].read_text())["verification"]
    told = {(one["layout"]["tensor"], one["layout"]["pipeline"], one["layout"]["stage"]): one for one in found["runs"]}
    assert told[2, 1, 0]["failed"] == "sft: --tensor_parallel_degree must be liked, got 2. Take another"
    assert told[1, 2, 0]["failed"] == "rank 1 was killed by signal 9: the host may have run out of memory"
    seconds = {stage: told[1, 1, stage]["measured_seconds"] for stage in (0, 1, 2)}
    assert seconds == {0: 4.0, 1: 3.0, 2: 1.0} and len(told) == 5
    assert told[1, 1, 1]["measured_peaks"] == [3e8, 5e8] and not found["is_complete"] and not found["same_order"]
    assert [one["place"] for one in sorted(found["runs"], key=lambda one: one["measured_seconds"] or 9)][:3] == (
        found["order"][:3]
    )
    assert json.loads(folders["flags.json"].read_text())["sharding"] == "stage2"  # the fastest that was measured
    assert "Stopped after 5 runs." in out and "6 plans are run on" in err and "3 s a step" in err


def test_a_configuration_alone_is_trained_in_two_layouts(rates_file, tmp_path, monkeypatch, capfd):
    """The example itself, with a tokenizer, weights and words made for it; what it takes is not judged."""
    monkeypatch.setattr(commands, "LAUNCH", (sys.executable, LAUNCH))
    monkeypatch.setattr(place, "about", lambda: {"device": "cpu", "name": "a processor"})
    file = tmp_path / "plan.json"
    assert main(train(TINY, rates_file, "--verify", 2, "--ways", "--steps", 2, "--json", file)) == 0
    out, err = capfd.readouterr()
    content = json.loads(file.read_text())
    runs = content["verification"]["runs"]
    assert [one["place"] for one in runs][0] == 1 and len(runs) == 2 and content["verification"]["is_complete"]
    for one in runs:
        assert one["failed"] is None and len(one["steps"]) == 2 and one["measured_seconds"] == one["steps"][1] > 0
        assert len(one["measured_peaks"]) == len(one["simulated_peaks"]) == 2
        assert all(1e8 < peak < 5e9 for peak in one["measured_peaks"])
    fastest = min(runs, key=lambda one: one["measured_seconds"])
    assert content["verification"]["order"][0] == fastest["place"]
    assert f"{fastest['measured_seconds']:.3g}" in out and "Measured on a processor, processes: 2 steps" in out
