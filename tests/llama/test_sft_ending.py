"""The end of a run: the work is saved first, no signal breaks a write, and what is only shown ends nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from examples.llama2_13b.folders import safetensors_folder, safetensors_writer
from examples.llama2_13b.io import atomic
from examples.llama2_13b.sft import SftFlags, sft
from examples.llama2_13b.train import loss_curve, metrics, training_state
from examples.llama2_13b.train.interrupt import Interrupt
from examples.llama2_13b.train.metrics import read_log
from examples.llama2_13b.train.trainer import Trainer
from tests.llama.conftest import EXAMPLE
from tests.llama.test_sft import assert_same_weights, interrupt_at, losses, weights

pytestmark = pytest.mark.usefixtures("no_measuring", "no_nohup")
FOUR = {"max_steps": 4, "warmup_steps": 0}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SHORT = {"max_steps": 2, "warmup_steps": 0}


@pytest.mark.parametrize("name", [r"cost_$\frac$_a", "$x", "$$", "a_$b^$", "鱼_^{", os.fsdecode(b"caf\xe9")])
def test_a_folder_of_any_name_gets_model_log_and_picture(sft_flags, tmp_path, capfd, name):
    output = tmp_path / name
    assert sft(sft_flags(output_dir=str(output), **SHORT)) == 0
    assert weights(output) and len(losses(output)) == 2
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "loss.png" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["learning_rate", "adam_epsilon", "weight_decay"])
def test_numbers_that_are_not_finite_are_refused_before_a_run_is_removed(sft_flags, name):
    with pytest.raises(ValueError, match=f"sft: --{name} must be finite, got inf"):
        sft_flags(**{name: float("inf")})
    assert sft_flags(max_grad_norm=float("inf"))


def test_a_write_that_fails_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"older")
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="tokenizer.json"):
        atomic.write_file(path, b"newer")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]


def full_disk(*arguments):
    raise OSError(28, "No space left\non device")


def test_a_picture_that_fails_is_one_line_and_the_model_is_saved(sft_flags, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(loss_curve, "draw", full_disk)
    assert sft(sft_flags(**SHORT)) == 0
    assert weights(tmp_path / "run")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "loss.png" in line]
    assert line.startswith("loss.png is not drawn: OSError: [Errno 28] No space left on device. Training is not")


def test_a_full_disk_in_the_picture_leaves_a_whole_model(sft_flags, tmp_path, monkeypatch):
    write_file = atomic.write_file
    monkeypatch.setattr(
        loss_curve.atomic,
        "write_file",
        lambda path, content: (full_disk if path.suffix == ".png" else write_file)(path, content),
    )
    assert sft(sft_flags(**SHORT)) == 0
    assert weights(tmp_path / "run") and not (tmp_path / "run" / "loss.png").exists()


@pytest.mark.usefixtures("no_drawing")
def test_an_old_checkpoint_that_cannot_go_is_one_line(sft_flags, tmp_path, monkeypatch, capfd):
    """As on NFS, where a file that someone reads stays in its folder under another name."""

    def refuse(path):
        raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr(training_state.shutil, "rmtree", lambda path, **options: options or refuse(path))
    assert sft(sft_flags(save_steps=1, save_total_limit=1, **SHORT)) == 0
    assert weights(tmp_path / "run")
    assert capfd.readouterr().err.count("checkpoint-1 is not removed: OSError: [Errno 39] Directory not empty") == 1


def test_training_needs_no_matplotlib(sft_flags, tmp_path, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sft(sft_flags(**SHORT)) == 0
    assert weights(tmp_path / "run")
    assert "loss.png is not drawn: ModuleNotFoundError" in capfd.readouterr().err


@pytest.mark.parametrize("screens", ["> /dev/full 2> /dev/full", ">&- 2>&-", "2>&1 | true"])
def test_screens_that_take_nothing_end_nothing(tiny_folder, few_samples, tmp_path, screens):
    """Streams on a full disk, closed, and without a reader; an output folder that an ASCII screen cannot name."""
    output = tmp_path / "鱼"
    flags = {"model_name_or_path": tiny_folder, "dataset_name_or_path": few_samples, "output_dir": output}
    flags |= {"src_length": 100, "max_length": 256, "max_steps": 1}
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'examples.llama2_13b.sft', *words])} {screens}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], cwd=EXAMPLE.parents[1], env=environment, check=False)
    assert done.returncode == 0
    assert weights(output) and len(losses(output)) == 1


def test_libraries_print_into_no_file_of_the_run():
    """With closed streams a file would get the descriptor 1 or 2."""
    code = "import os; from examples.llama2_13b.io import remarks\nwith remarks.screens(): os._exit(os.dup(0))"
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&- 2>&-"],
        cwd=EXAMPLE.parents[1],
        check=False,
    )
    assert done.returncode > 2


@pytest.mark.usefixtures("no_drawing")
def test_memory_that_cannot_be_measured_ends_nothing(sft_flags, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(metrics, "peak_memory", full_disk)
    assert sft(sft_flags(**SHORT)) == 0
    assert weights(tmp_path / "run") and "peak_memory" not in read_log(tmp_path / "run" / "log.jsonl")[0]
    assert "peak_memory is not measured: OSError" in capfd.readouterr().err


def test_a_log_that_a_power_cut_damaged_is_read_where_it_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n\xff\xfe\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_log(path)] == [1, 2]


class FullFor:
    """A file that refuses its first lines, takes half of the next, then all."""

    name = "log.jsonl"

    def __init__(self, file, refusals):
        self.file, self.refusals, self.halves = file, refusals, 1

    def write(self, text):
        if self.refusals:
            self.refusals -= 1
            full_disk()
        if self.halves:
            self.halves -= 1
            text = text[: len(text) // 2]
        return self.file.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


@pytest.mark.parametrize("refusals", [1, 3, 4])
def test_log_lines_wait_until_the_disk_has_room(tmp_path, capfd, refusals):
    path = tmp_path / "log.jsonl"
    with metrics.Log(path, 0) as log:
        log._file = FullFor(log._file, refusals)
        for step in range(1, 5):
            log.write({"step": step})
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4]
    assert capfd.readouterr().err.count("training goes on") == 1


def test_a_log_that_cannot_be_finished_is_one_line(tmp_path, capfd):
    path = tmp_path / "log.jsonl"
    with metrics.Log(path, 0) as log:
        log.write({"step": 1})
        log._file = FullFor(log._file, 1000)
        log.write({"step": 2})
    assert [line["step"] for line in read_log(path)] == [1]
    assert "log.jsonl lacks its last lines: OSError" in capfd.readouterr().err


def killing(monkeypatch, owner, name, number, times=1, when=lambda *arguments: True):
    """The signal arrives in the midst of a call."""
    call = getattr(owner, name)

    def call_then_kill(*arguments, **named):
        if when(*arguments):
            for _ in range(times):
                os.kill(os.getpid(), number)
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, call_then_kill)


@pytest.fixture(scope="module")
def whole(tiny_folder, few_samples, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    flags = {"model_name_or_path": str(tiny_folder), "dataset_name_or_path": str(few_samples)}
    flags["output_dir"] = str(output)
    sft(SftFlags(**flags, src_length=100, max_length=256, zero_padding=True, max_steps=4, learning_rate=1e-3))
    return output


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["shards", "index", "files", "evaluation", "picture", "log"])
def test_no_signal_at_the_end_costs_the_model(request, sft_flags, tmp_path, monkeypatch, whole, place, number):
    if place != "picture":
        request.getfixturevalue("no_drawing")
    obeyed = number == signal.SIGINT and place in ("evaluation", "picture", "log")
    times = 1 if obeyed else 3  # a second Ctrl-C ends what is no writing
    owner, name, when = {
        "shards": (safetensors_writer.Files, "write", lambda *arguments: True),
        "index": (safetensors_folder, "write_index", lambda *arguments: True),
        "files": (training_state, "write_files", lambda *arguments: True),
        "evaluation": (Trainer, "evaluate", lambda *arguments: True),
        "picture": (loss_curve, "draw", lambda *arguments: True),
        "log": (metrics.Log, "write", lambda log, line: line["step"] == 4),
    }[place]
    killing(monkeypatch, owner, name, number, times, when)
    assert sft(sft_flags(**FOUR)) == 0
    assert_same_weights(whole, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole)
    assert (tmp_path / "run" / "loss.png").exists()


@pytest.mark.usefixtures("no_drawing")
def test_the_model_is_whole_before_the_last_evaluation(sft_flags, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(Trainer, "evaluate", full_disk)
    with pytest.raises(OSError, match="No space left"):
        sft(sft_flags(**FOUR))
    assert_same_weights(whole, tmp_path / "run")


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["step", "evaluation", "log", "checkpoint"])
def test_signals_on_the_way_leave_a_checkpoint(sft_flags, tmp_path, monkeypatch, whole, place, number):
    """SIGTERM and SIGHUP come three times, as a launcher sends them."""
    times = 3 if number != signal.SIGINT or place == "checkpoint" else 1
    due = {"save_steps": 2} if place == "checkpoint" else {}
    owner, name, when = {
        "step": (Trainer, "_step", lambda trainer, *arguments: trainer.step == 1),
        "evaluation": (Trainer, "evaluate", lambda trainer, *arguments: trainer.step == 2),
        "log": (metrics.Log, "write", lambda log, line: line["step"] == 2),
        "checkpoint": (training_state, "Saving", lambda folder, *arguments: folder.name == "checkpoint-2"),
    }[place]
    with monkeypatch.context() as patch:
        killing(patch, owner, name, number, times, when)
        assert sft(sft_flags(eval_steps=1, **due, **FOUR)) == 128 + number
    (last,) = training_state.checkpoints(tmp_path / "run")[-1:]
    assert last.name in ("checkpoint-2", "checkpoint-3") and not (tmp_path / "run" / "config.json").exists()
    assert sft(sft_flags(eval_steps=1, resume_from_checkpoint="last", **due, **FOUR)) == 0
    assert_same_weights(whole, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.usefixtures("no_drawing")
def test_a_second_ctrl_c_in_a_step_is_obeyed(sft_flags, monkeypatch):
    killing(monkeypatch, Trainer, "_step", signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        sft(sft_flags(**FOUR))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_run_has_its_picture_or_a_line(sft_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_curve, "draw", full_disk)
    interrupt_at(monkeypatch, 1, signal.SIGTERM)
    assert sft(sft_flags(**FOUR)) == 128 + signal.SIGTERM
    assert [path.name for path in training_state.checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    json.loads((tmp_path / "run" / "checkpoint-1" / training_state.STATE).read_text())
