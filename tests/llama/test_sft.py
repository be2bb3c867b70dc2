"""Fine-tuning: the loss, resuming, interruptions, the log, and what is refused before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

import fusionkit as fk
from examples.llama2_13b.folders import safetensors_writer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.io import flags as flags_module
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.sft import SftFlags, sft
from examples.llama2_13b.train import metrics, training_state
from examples.llama2_13b.train.metrics import model_flops, read_log
from examples.llama2_13b.train.optimizer import AdamW, clipping_scale
from examples.llama2_13b.train.schedule import learning_rate
from examples.llama2_13b.train.trainer import Trainer, deciding
from tests.llama.conftest import DATA, EXAMPLE


@pytest.fixture(autouse=True)
def nothing_beside_the_training(request):
    """One test looks at the picture and at what is measured."""
    if request.function is not test_the_log_has_a_line_a_step_with_every_field:
        request.getfixturevalue("no_measuring")
        request.getfixturevalue("no_drawing")


def losses(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def weights(folder):
    return {name: value for path in folder.glob("model-*.safetensors") for name, value in load_file(path).items()}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_fifty_losses_agree_with_those_of_the_eager_backend(sft_flags, tmp_path):
    runs = {}
    for backend in ("cpu", "eager"):
        fk.ledger().reset()
        with fk.use_backend(backend):
            assert sft(sft_flags(output_dir=str(tmp_path / backend), max_steps=50, learning_rate=3e-3)) == 0
        assert {used for _, used, _ in fk.ledger()} == {backend}
        runs[backend] = losses(tmp_path / backend)
    assert len(runs["cpu"]) == 50 and runs["cpu"][-1] < runs["cpu"][0] - 0.5
    np.testing.assert_allclose(runs["cpu"], runs["eager"], rtol=1e-3)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_resumed_run_is_equal_bit_by_bit(native, sft_flags, tmp_path, bf16):
    native.set_num_threads(2)  # what threads share must not depend on who comes first
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = {"bf16": bf16, "save_steps": 3, "eval_steps": 2, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    sft(sft_flags(output_dir=str(whole), **changes))
    start = whole / "checkpoint-3"
    sft(sft_flags(output_dir=str(resumed), resume_from_checkpoint=str(start), **changes))
    assert losses(resumed) == losses(whole)[3:]
    assert_same_weights(whole, resumed)
    assert_same_weights(whole / "checkpoint-6", resumed / "checkpoint-6")
    for moment in ("moment1", "moment2"):
        one, other = (load_file(next((run / "checkpoint-6").glob(f"{moment}-*"))) for run in (whole, resumed))
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_recomputation_changes_no_bit(sft_flags, tmp_path):
    for name, changes in (
        ("kept", {}),
        ("again", {"recompute": True}),
        ("core", {"recompute": True, "recompute_granularity": "core_attn"}),
    ):
        sft(sft_flags(output_dir=str(tmp_path / name), max_steps=3, **changes))
    assert losses(tmp_path / "kept") == losses(tmp_path / "again") == losses(tmp_path / "core")


def test_the_loss_is_per_token_over_all_micro_batches(sft_flags, tmp_path):
    """Rows of 1 to 3 samples hold different numbers of targets: a mean of micro-batch means would differ."""
    for name, rows, micro_batches in (("together", 4, 1), ("apart", 1, 4)):
        changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": micro_batches}
        sft(sft_flags(output_dir=str(tmp_path / name), **changes))
    np.testing.assert_allclose(losses(tmp_path / "apart"), losses(tmp_path / "together"), rtol=1e-5)


def interrupt_at(monkeypatch, step, number):
    """The signal arrives while that step is computed."""
    compute = Trainer._step

    def step_then_signal(self, *args):
        line = compute(self, *args)
        if line["step"] == step:
            os.kill(os.getpid(), number)
        return line

    monkeypatch.setattr(Trainer, "_step", step_then_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_checkpoint_and_resumes_bit_by_bit(sft_flags, tmp_path, monkeypatch, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sft(sft_flags(output_dir=str(whole)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, number)
        assert sft(sft_flags(output_dir=str(stopped))) == 128 + number
    assert [path.name for path in training_state.checkpoints(stopped)] == ["checkpoint-4"]
    assert not (stopped / "config.json").exists()
    assert sft(sft_flags(output_dir=str(stopped), resume_from_checkpoint="last")) == 0
    assert losses(stopped) == losses(whole)
    assert_same_weights(whole, stopped)


def test_a_signal_in_the_last_step_lets_the_run_end(sft_flags, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 6, signal.SIGINT)
    assert sft(sft_flags()) == 0
    assert weights(tmp_path / "run") and not training_state.checkpoints(tmp_path / "run")


def test_a_kill_leaves_the_last_checkpoint_and_its_log(sft_flags, tmp_path, monkeypatch):
    """A log that ran ahead of the checkpoint is cut back to it, as is a line that was half written."""
    output = tmp_path / "run"
    sft(sft_flags(save_steps=2))
    whole = losses(output)
    for step in (3, 6):
        (output / f".checkpoint-{step}.saving").mkdir()
    (output / "checkpoint-6").rename(output / "gone")
    with (output / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    sft(sft_flags(save_steps=2, resume_from_checkpoint="last"))
    assert losses(output) == whole
    assert (output / "checkpoint-6" / training_state.STATE).exists() and not list(output.glob(".*.saving"))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(sft_flags, tmp_path, monkeypatch):
    output = tmp_path / "run"
    write = safetensors_writer.Files.write

    def full(files, pieces):
        if "-4." in files._folder.name and files.names[0].startswith("moment2"):
            raise OSError(28, "No space left on device")
        return write(files, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer.Files, "write", full)
        with pytest.raises(OSError, match="No space left"):
            sft(sft_flags(save_steps=2))
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-2", "log.jsonl"]
    assert sft(sft_flags(save_steps=2, resume_from_checkpoint="last")) == 0
    assert len(losses(output)) == 6


def contents(output):
    return {path: path.read_bytes() for name in checkpoint_names(output) for path in sorted((output / name).iterdir())}


def checkpoint_names(output):
    return [path.name for path in training_state.checkpoints(output)]


def test_a_checkpoint_is_written_while_the_next_steps_run(sft_flags, tmp_path, monkeypatch, capfd):
    """The bytes are those of its own step, and the next save waits for them."""
    at_once, later = tmp_path / "run", tmp_path / "later"
    assert sft(sft_flags(save_steps=3, save_total_limit=2)) == 0
    stepped, seen = threading.Event(), []
    write, step = safetensors_writer.Files.write, Trainer._step

    def write_late(files, pieces):
        if files._folder.name.startswith(".checkpoint"):
            assert stepped.wait(60)
            seen.append(threading.current_thread().name)
        return write(files, pieces)

    def step_on(trainer, *arguments):
        line = step(trainer, *arguments)
        if line["step"] == 5:
            seen.append(checkpoint_names(later))
            stepped.set()
        return line

    monkeypatch.setattr(safetensors_writer.Files, "write", write_late)
    monkeypatch.setattr(Trainer, "_step", step_on)
    assert sft(sft_flags(save_steps=3, save_total_limit=2, output_dir=str(later), async_save=True)) == 0
    assert seen == [[], *["checkpoint"] * 6] and checkpoint_names(later) == ["checkpoint-3", "checkpoint-6"]
    num_bytes = 3 * sum(value.nbytes for value in weights(later / "checkpoint-6").values())  # and two moments
    assert capfd.readouterr().out.count(f"{num_bytes / 1e6:.0f} MB of this process are copied to host memory") == 1
    ours, theirs = contents(at_once), contents(later)
    assert {path.relative_to(at_once): content for path, content in ours.items()} == {
        path.relative_to(later): content for path, content in theirs.items()
    }


def test_a_checkpoint_waits_for_the_one_before(sft_flags, tmp_path, monkeypatch):
    """Which is written until the last step is done, and has its name before the next one begins."""
    write, save_model, last_step_is_done = safetensors_writer.Files.write, Trainer._save_model, threading.Event()

    def write_late(files, pieces):
        assert "checkpoint-3" not in files._folder.name or last_step_is_done.wait(60)
        return write(files, pieces)

    def go_on(*arguments):
        last_step_is_done.set()
        save_model(*arguments)

    monkeypatch.setattr(safetensors_writer.Files, "write", write_late)
    monkeypatch.setattr(Trainer, "_save_model", go_on)
    assert sft(sft_flags(save_steps=3, async_save=True)) == 0
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"]


def test_a_write_that_fails_in_the_background_ends_the_run_with_its_reason(sft_flags, tmp_path, monkeypatch):
    output = tmp_path / "run"
    write = safetensors_writer.Files.write

    def full(files, pieces):
        if "-4." in files._folder.name:
            raise OSError(28, "No space left on device")
        return write(files, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer.Files, "write", full)
        with pytest.raises(OSError, match="No space left"):
            sft(sft_flags(save_steps=2, async_save=True))
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-2", "log.jsonl"]
    assert 4 <= len(losses(output)) <= 6


def test_a_stopped_run_waits_for_its_checkpoint(sft_flags, tmp_path, monkeypatch):
    write = safetensors_writer.Files.write
    monkeypatch.setattr(safetensors_writer.Files, "write", lambda *given: time.sleep(0.3) or write(*given))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        assert sft(sft_flags(async_save=True, save_steps=2)) == 128 + signal.SIGINT
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-2", "checkpoint-3"]
    assert sft(sft_flags(async_save=True, resume_from_checkpoint="last")) == 0
    assert not list((tmp_path / "run").glob(".checkpoint*")) and len(losses(tmp_path / "run")) == 6


def test_another_failure_leaves_no_half_checkpoint(sft_flags, tmp_path, monkeypatch):
    """A gradient that is not finite waits for what is being written; other errors remove it."""
    step, write = Trainer._step, safetensors_writer.Files.write
    monkeypatch.setattr(safetensors_writer.Files, "write", lambda *given: time.sleep(0.3) or write(*given))
    for error, expected in ((FloatingPointError("norm"), ["checkpoint-2"]), (RuntimeError("other"), [])):
        output = tmp_path / type(error).__name__

        def fail(trainer, *arguments, error=error):
            if trainer.step == 2:
                raise error
            return step(trainer, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", fail)
            with pytest.raises(type(error)):
                sft(sft_flags(async_save=True, save_steps=2, output_dir=str(output)))
        assert checkpoint_names(output) == expected and not list(output.glob(".checkpoint*"))


def test_the_log_has_a_line_a_step_with_every_field(sft_flags, tmp_path):
    output = tmp_path / "run"
    sft(sft_flags(eval_steps=4, save_steps=2, save_total_limit=1, lr_scheduler_type="cosine"))
    lines = read_log(output / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert {"loss", "learning_rate", "tokens_per_second", "mfu", "peak_memory"} <= line.keys()
        assert line["tokens_per_second"] > 0 and 0 < line["mfu"] < 1
        assert 50e6 < line["peak_memory"] < 50e9
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 6]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in training_state.checkpoints(output)] == ["checkpoint-6"]
    assert Llama.from_pretrained(output).config == Llama.from_pretrained(output / "checkpoint-6").config


def test_evaluation_is_the_mean_over_all_targets_and_trains_nothing(sft_flags, tmp_path):
    for name, batch_size in (("one", 1), ("four", 4)):
        sft(
            sft_flags(output_dir=str(tmp_path / name), eval_steps=1, per_device_eval_batch_size=batch_size, max_steps=3)
        )
    sft(sft_flags(output_dir=str(tmp_path / "none"), max_steps=3))
    one, four = ([line["eval_loss"] for line in read_log(tmp_path / n / "log.jsonl")] for n in ("one", "four"))
    np.testing.assert_allclose(one, four, rtol=1e-5)
    assert one[-1] < one[0]
    assert losses(tmp_path / "none") == losses(tmp_path / "one")


def test_packing_changes_no_loss(sft_flags, tmp_path):
    """At a learning rate that moves nothing: packed samples must not see each other, and padding must not count."""
    packings = {"none": (False, False), "sequential": (True, False), "greedy": (True, True)}
    found = []
    for name, (packed, greedy) in packings.items():
        changes = {"zero_padding": packed, "greedy_zero_padding": greedy, "per_device_eval_batch_size": 4}
        sft(sft_flags(output_dir=str(tmp_path / name), max_steps=1, warmup_steps=0, learning_rate=1e-12, **changes))
        found.append(read_log(tmp_path / name / "log.jsonl")[-1]["eval_loss"])
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


def test_training_runs_without_packing_and_for_whole_epochs(sft_flags, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    lines = (DATA / "train.json").read_text(encoding="utf-8").splitlines()[:10]
    (few / "train.json").write_text("\n".join(lines), encoding="utf-8")
    changes = {"dataset_name_or_path": str(few), "zero_padding": False, "max_steps": -1, "num_train_epochs": 2}
    assert sft(sft_flags(per_device_train_batch_size=3, **changes)) == 0
    assert len(losses(tmp_path / "run")) == 2 * 4
    assert "eval_loss" not in read_log(tmp_path / "run" / "log.jsonl")[-1]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"save_steps": 7}, "--save_steps must be at most 6, the steps of this run, got 7"),
        ({"eval_steps": 7}, "--eval_steps must be at most 6"),
        ({"warmup_steps": 7}, "--warmup_steps must be at most 6"),
        ({"src_length": 256}, "--src_length must be below max_length 256"),
        ({"max_length": 257}, "--max_length must be at most 256, the model's positions"),
        ({"zero_padding": False, "greedy_zero_padding": True}, "--zero_padding must be true"),
        ({"learning_rate": 0.0}, "--learning_rate must be above 0"),
        ({"lr_scheduler_type": "polynomial"}, "--lr_scheduler_type must be linear or cosine or constant"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be at least 1"),
        ({"seed": 2**32}, "--seed must be below 4294967296"),
        ({"device": "abacus"}, "--device must be one that Paddle has here, got 'abacus'"),
        ({"max_steps": 0}, "--max_steps must be at least 1, or -1"),
        ({"recompute": True, "recompute_granularity": "core"}, "granularity must be full or full_attn or core_attn"),
        ({"recompute_granularity": "core_attn"}, "--recompute_granularity must be left out without recompute"),
        ({"resume_from_checkpoint": "last"}, "--output_dir must be a folder with a checkpoint"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_training(sft_flags, tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        sft(sft_flags(**changes))
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_bad_data_line_stops_before_anything_is_written(sft_flags, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "train.json").write_text('{"src": "a", "tgt": "b"}\n')
    (bad / "dev.json").write_text('{"src": "a", "tgt": "b"}\n{"src": "a"}\n')
    with pytest.raises(ValueError, match="dev.json:2"):
        sft(sft_flags(dataset_name_or_path=str(bad)))
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_not_write_over_the_first(sft_flags, tmp_path):
    sft(sft_flags(max_steps=2, save_steps=1))
    with pytest.raises(ValueError, match="must hold no run or model yet"):
        sft(sft_flags())
    for changes, words in (
        ({"seed": 1}, "--seed must be 42"),
        ({"per_device_train_batch_size": 2}, "--per_device_train_batch_size x .* must be 1 as in .*, got 2"),
        ({"learning_rate": 0.5}, "--learning_rate must be "),
        ({"weight_decay": 3.0}, "--weight_decay must be "),
        ({"max_steps": 2}, "--max_steps must be above the checkpoint's step 2"),
    ):
        with pytest.raises(ValueError, match=words):
            sft(sft_flags(resume_from_checkpoint="last", **changes))
    assert sft(sft_flags(overwrite_output_dir=True, max_steps=3)) == 0
    assert len(losses(tmp_path / "run")) == 3 and not training_state.checkpoints(tmp_path / "run")


def test_a_model_is_not_written_over(sft_flags, tiny_folder):
    with pytest.raises(ValueError, match="must hold no run or model yet"):
        sft(sft_flags(output_dir=str(tiny_folder)))


def test_steps_of_two_runs_are_not_mixed(sft_flags, tmp_path):
    """Resuming an earlier checkpoint in place would leave the later ones to be taken for its own."""
    sft(sft_flags(max_steps=2, save_steps=1))
    first = str(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ValueError, match="--resume_from_checkpoint must be the last in output_dir"):
        sft(sft_flags(max_steps=2, resume_from_checkpoint=first))
    other = {"output_dir": str(tmp_path / "other"), "max_steps": 2}
    assert sft(sft_flags(resume_from_checkpoint=first, **other)) == 0
    with pytest.raises(ValueError, match="must hold no run or model yet"):
        sft(sft_flags(resume_from_checkpoint=first, **other))


def test_overwriting_forgets_the_chat_template(sft_flags, tmp_path):
    template = str(EXAMPLE / "configs" / "llama2_chat.json")
    sft(sft_flags(max_steps=1, warmup_steps=0, chat_template=template))
    assert (tmp_path / "run" / "chat_template.json").exists()
    sft(sft_flags(max_steps=1, warmup_steps=0, overwrite_output_dir=True))
    assert not (tmp_path / "run" / "chat_template.json").exists()


def test_a_failing_first_op_leaves_the_run_that_was_to_be_overwritten(sft_flags, tmp_path, monkeypatch):
    sft(sft_flags(max_steps=2, save_steps=2))

    def fail(dtype):
        raise ValueError("environment: FUSIONKIT_BACKENT is not a setting")

    monkeypatch.setattr(metrics, "measure_peak_flops", fail)
    with pytest.raises(ValueError, match="FUSIONKIT_BACKENT"):
        sft(sft_flags(overwrite_output_dir=True))
    assert len(losses(tmp_path / "run")) == 2 and training_state.checkpoints(tmp_path / "run")


FACTORS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "recorded, rows",
    [({"rows_per_step": 4}, 4), ({"rows_per_step": 2}, 2), (FACTORS | {"copies": 2}, 4),
     (FACTORS | {"processes": 2}, 4), (FACTORS, 2)],
    ids=["now", "now-same", "older", "oldest", "oldest-single"],
)  # fmt: skip
def test_other_rows_in_a_step_are_refused_when_resuming(sft_flags, tmp_path, recorded, rows):
    """Older checkpoints recorded the factors; the oldest recorded several copies as processes, and one not at all."""
    sft(sft_flags(max_steps=1, warmup_steps=0, save_steps=1, gradient_accumulation_steps=2))
    path = tmp_path / "run" / "checkpoint-1" / training_state.STATE
    state = json.loads(path.read_text())
    assert state["flags"].pop("rows_per_step") == 2
    path.write_text(json.dumps({**state, "flags": state["flags"] | recorded}))
    resumed = sft_flags(max_steps=2, warmup_steps=0, per_device_train_batch_size=2, resume_from_checkpoint="last")
    if rows == 2:
        assert sft(resumed) == 0  # in other micro-batches
        return
    with pytest.raises(ValueError, match=r"batch_size x .*steps x copies of the model must be 4 as in .*, got 2"):
        sft(resumed)


@pytest.mark.parametrize("decay_steps", [None, 3])
def test_a_run_that_is_made_longer_tells_what_becomes_of_its_rates(sft_flags, tmp_path, capsys, decay_steps):
    sft(sft_flags(max_steps=2, save_steps=1, decay_steps=decay_steps))
    text = "the learning rate falls up to step 4 now, up to step 2 before"
    assert text not in capsys.readouterr().out
    sft(sft_flags(max_steps=4, decay_steps=decay_steps, resume_from_checkpoint="last"))
    assert (text in capsys.readouterr().out) == (decay_steps is None)
    rates = [line["learning_rate"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert rates == [learning_rate(step, "linear", 1e-3, 0.0, 2, decay_steps or 4) for step in range(4)]


def test_every_flag_that_decides_is_held_against_the_checkpoint(sft_flags, tmp_path):
    """Whatever changes the samples that a step sees, or how it learns from them."""
    flags = deciding(sft_flags(), Mesh())
    state = training_state.TrainingState(1, "data", flags, {})
    assert flags.keys() >= {"seed", "src_length", "max_length", "zero_padding", "greedy_zero_padding"}
    assert flags.keys() >= {"rows_per_step", "bf16", "learning_rate"}
    training_state.require_same(state, "data", flags, tmp_path, "sft")
    for name in flags:
        shown = "copies of the model" if name == "rows_per_step" else f"--{name}"
        with pytest.raises(ValueError, match=f"sft: .*{shown} must be "):
            training_state.require_same(state, "data", {**flags, name: "another"}, tmp_path, "sft")
    with pytest.raises(ValueError, match="the training data must be that of"):
        training_state.require_same(state, "other", flags, tmp_path, "sft")


def test_other_data_is_refused_when_resuming(sft_flags, tmp_path):
    sft(sft_flags(max_steps=2, save_steps=1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.json").write_text('{"src": "a", "tgt": "b"}\n')
    with pytest.raises(ValueError, match="the training data must be that of"):
        sft(sft_flags(resume_from_checkpoint="last", dataset_name_or_path=str(other)))


def test_the_same_data_in_another_folder_is_accepted_when_resuming(sft_flags, few_samples, tmp_path):
    sft(sft_flags(output_dir=str(tmp_path / "whole")))
    sft(sft_flags(save_steps=2))
    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "checkpoint")
    shutil.copytree(few_samples, tmp_path / "moved")
    again = {"resume_from_checkpoint": str(tmp_path / "checkpoint"), "dataset_name_or_path": str(tmp_path / "moved")}
    assert sft(sft_flags(output_dir=str(tmp_path / "again"), **again)) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[4:]
    assert_same_weights(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize("file", ["model-00001-of-00001.safetensors", "moment2-00001-of-00001.safetensors"])
def test_a_truncated_checkpoint_is_named(sft_flags, tmp_path, file):
    sft(sft_flags(max_steps=2, save_steps=1))
    path = tmp_path / "run" / "checkpoint-2" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file}: truncated"):
        sft(sft_flags(resume_from_checkpoint="last"))


@pytest.mark.parametrize("file", ["model-00001-of-00001.safetensors", "moment1-00001-of-00001.safetensors"])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_refused_by_the_name_of_its_file(sft_flags, tmp_path, file, bit):
    sft(sft_flags(max_steps=2, save_steps=1))
    path = tmp_path / "run" / "checkpoint-2" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"checkpoint-2/{file}: must have the CRC-32 [0-9a-f]{{8}}, .*got [0-9a-f]{{8}}"
    ):
        sft(sft_flags(resume_from_checkpoint="last"))


def test_every_file_of_a_checkpoint_has_its_checksum(sft_flags, tmp_path):
    sft(sft_flags(max_steps=2, save_steps=1))
    folder = tmp_path / "run" / "checkpoint-2"
    checksums = training_state.load(folder).checksums
    assert checksums == {
        path.name: f"{zlib.crc32(path.read_bytes()):08x}"
        for path in folder.iterdir()
        if path.name != training_state.STATE
    }
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokenizer_config.json: must have the CRC-32 .*got 00000000"):
        sft(sft_flags(resume_from_checkpoint="last"))


@pytest.mark.parametrize("part", [{"optimizer": {}}, {"step": "two"}, {"flags": None}])
def test_a_state_that_no_run_wrote_is_named(sft_flags, tmp_path, part):
    sft(sft_flags(max_steps=1, warmup_steps=0, save_steps=1))
    path = tmp_path / "run" / "checkpoint-1" / training_state.STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(ValueError, match="trainer_state.json: not the state of a run"):
        sft(sft_flags(resume_from_checkpoint="last"))


def parse(*argv):
    return flags_module.parse(SftFlags, list(argv), "sft")


REQUIRED = ("--model_name_or_path", "m", "--dataset_name_or_path", "d", "--output_dir", "o")


def test_flags_come_from_the_command_line_and_a_json_file(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"learning_rate": 1, "bf16": True, "max_steps": 5, "save_steps": None}))
    flags = parse(str(path), *REQUIRED, "--max_steps=7", "--zero_padding", "--recompute", "false", "--eval_steps", "2")
    assert (flags.learning_rate, flags.bf16, flags.max_steps, flags.save_steps) == (1.0, True, 7, None)
    assert (flags.zero_padding, flags.recompute, flags.eval_steps, flags.output_dir) == (True, False, 2, "o")


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--learning_rat", "1"), "there is no flag --learning_rat; did you mean --learning_rate?"),
        (("--logging_steps", "1"), "there is no flag --logging_steps; --help lists every flag"),
        (("--xyzzy", "1"), "there is no flag --xyzzy; --help lists every flag"),
        (("--max_steps", "many"), "--max_steps must be of type int, got 'many'"),
        (("--max_steps", "1.5"), "--max_steps must be of type int"),
        (("--bf16", "perhaps"), "--bf16 must be of type bool, got 'perhaps'"),
        (("--max_steps",), "--max_steps must be followed by a value"),
        (("loose",), "expected a flag such as --model_name_or_path, got 'loose'"),
    ],
)
def test_a_wrong_flag_is_an_error_that_helps(argv, words):
    with pytest.raises(ValueError) as error:
        parse(*REQUIRED, *argv)
    assert words in str(error.value)


def test_a_wrong_flag_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "flags.json"
    for content, words in (
        ('{"warmup_step": 1}', "did you mean --warmup_steps"),
        ('{"bf16": 1}', "of type bool"),
        ("{", "not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match="flags.json.*" + words):
            parse(str(path), *REQUIRED)


def test_a_required_flag_that_is_missing_is_named():
    with pytest.raises(ValueError, match="--output_dir must be given"):
        parse(*REQUIRED[:-2])


def test_the_command_line_reports_one_line_and_no_trace():
    command = [sys.executable, "-m", "examples.llama2_13b.sft", *REQUIRED, "--max_step", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLE.parents[1], check=False)
    assert done.returncode == 1
    assert "did you mean --max_steps?" in done.stderr and "Traceback" not in done.stderr


def test_the_shipped_flag_files_are_read():
    for path in EXAMPLE.glob("configs/sft_*.json"):
        assert parse(str(path), *REQUIRED).zero_padding


def test_learning_rates_rise_to_the_peak_and_fall_to_the_minimum():
    def rates(kind):
        return [learning_rate(step, kind, 1.0, 0.1, 4, 24) for step in range(25)]

    for kind in ("linear", "cosine", "constant"):
        assert rates(kind)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates("constant")[5:] == [1.0] * 20
    assert rates("linear")[14] == pytest.approx(0.55) and rates("cosine")[14] == pytest.approx(0.55)
    assert rates("linear")[24] == pytest.approx(0.1) and rates("cosine")[24] == pytest.approx(0.1)
    assert rates("cosine")[9] == pytest.approx(0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2)


def test_model_flops_are_the_published_ones():
    """13B: 6 N is 77.1 GFLOP a token; attention adds 12 L h s, half of it under the causal diagonal."""
    config = LlamaConfig.from_json(EXAMPLE / "configs" / "llama2_13b.json")
    table = layout(config)
    assert model_flops(config, table, [1]) == pytest.approx(77.1e9, rel=1e-3)
    attention = model_flops(config, table, [4096]) / 4096 - model_flops(config, table, [1])
    assert attention == pytest.approx(12 * 40 * 5120 * 4096 / 2, rel=1e-3)
    both, one, other = (model_flops(config, table, lengths) for lengths in ([100, 200], [100], [200]))
    assert both == one + other


def test_one_step_of_the_optimizer_is_adamw_with_clipping():
    """Against the formula in float64: the joint norm is scaled to 0.5, matrices decay, norms do not."""
    paddle.seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = Llama(config)
    before = {name: parameter.numpy().astype(np.float64) for name, parameter in model.named_parameters()}
    optimizer = AdamW(model, Mesh(), 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=0.5)
    loss_sum, _ = model.loss(paddle.arange(8).unsqueeze(0), paddle.arange(8).unsqueeze(0))
    loss_sum.backward()
    gradients = {name: parameter.grad.numpy().astype(np.float64) for name, parameter in model.named_parameters()}
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert norm > 0.5
    assert optimizer.step(0.01) == pytest.approx(norm, rel=1e-5)
    for name, parameter in model.named_parameters():
        gradient = gradients[name] * 0.5 / norm
        decayed = before[name] * (1 - 0.01 * 0.1) if parameter.ndim > 1 else before[name]
        expected = decayed - 0.01 * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=0, atol=1e-5, err_msg=name)
        assert parameter.grad is None or not parameter.grad.numpy().any()


def test_gradients_are_scaled_down_and_never_up():
    """Also those of a step without a target, whose norm is 0."""
    assert [clipping_scale(norm, 2.0) for norm in (0.0, 1.0, 2.0, 8.0)] == [1.0, 1.0, 1.0, 0.25]
    assert [clipping_scale(norm, 0.0) for norm in (0.0, 8.0)] == [1.0, 1.0]
    assert clipping_scale(8.0, float("inf")) == 1.0
    for norm in (float("inf"), float("nan")):
        with pytest.raises(FloatingPointError, match=f"the gradient's norm must be finite, got {norm}"):
            clipping_scale(norm, 0.0)
