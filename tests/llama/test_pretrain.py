"""Pretraining on token files: the loss, resuming, splits, copies, and what is refused before anything is trained."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.token_files import TokenFiles
from examples.llama2_13b.io import flags as flags_module
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.pretrain import PretrainFlags, pretrain
from examples.llama2_13b.tokenize_texts import TokenizeFlags, tokenize_texts
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.metrics import read_log
from examples.llama2_13b.train.optimizer import AdamW
from examples.llama2_13b.train.trainer import Trainer, deciding
from tests.hanging import HANGING
from tests.launch import LAUNCH
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_sft import assert_same_weights, interrupt_at, losses, weights
from tests.llama.test_sft_processes import environment, printed
from tests.llama.test_token_batches import naive_rows
from tests.llama.test_token_files import documents_of, megatron, write

pytestmark = pytest.mark.usefixtures("no_measuring", "no_drawing")

CONSTANT = {"lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def tokens(tiny_folder, tmp_path_factory):
    """200 documents: 180 to train on, 16 to evaluate on, 4 to test on."""
    folder = tmp_path_factory.mktemp("tokens")
    lines = (DATA / "train.json").read_text(encoding="utf-8").splitlines()[:200]
    (folder / "texts.json").write_text("\n".join(lines), encoding="utf-8")
    prefix = folder / "pair" / "texts"
    assert tokenize_texts(TokenizeFlags(str(tiny_folder), str(folder / "texts.json"), str(prefix), "tgt")) == 0
    return prefix


@pytest.fixture
def pretrain_flags(tiny_folder, tokens, tmp_path):
    """Flags of a short run, with changes."""

    def make(**changes):
        values = {
            "model_name_or_path": str(tiny_folder),
            "input_dir": str(tokens),
            "output_dir": str(tmp_path / "run"),
            "split": "90,8,2",
            "max_seq_length": 64,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "min_learning_rate": 1e-4,
            "warmup_steps": 2,
        }
        return PretrainFlags(**{**values, **changes})

    return make


def naive_loss(folder, documents, length):
    """Mean over all targets: each part of a document in a row alone, as [1, tokens]."""
    model, total, targets = Llama.from_pretrained(folder), 0.0, 0
    for row in naive_rows(documents, length):
        for number in dict.fromkeys(number for *_, number in row):
            ids, labels = zip(*[(token, label) for token, label, _, other in row if other == number], strict=True)
            loss_sum, count = model.loss(*(paddle.to_tensor([each]) for each in (ids, labels)))
            total, targets = total + float(loss_sum), targets + int(count)
    return total / targets


def test_a_run_learns_evaluates_and_tests(pretrain_flags, tokens, tmp_path, capsys):
    fk.ledger().reset()
    assert pretrain(pretrain_flags(max_steps=30, eval_steps=10, learning_rate=3e-3)) == 0
    assert {used for _, used, _ in fk.ledger()} == {"cpu"}
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert [line["step"] for line in log if "eval_loss" in line] == [10, 20, 30]
    assert [line["step"] for line in log if "test_loss" in line] == [30]
    shown = capsys.readouterr().out
    assert f"test loss: {log[-1]['test_loss']:.4f}" in shown
    documents = documents_of(TokenFiles(tokens))
    for name, part in (("training", documents[:180]), ("evaluation", documents[180:196]), ("test", documents[196:])):
        count = sum(map(len, part))
        assert f"{name}: {count} tokens of {len(part)} documents, rows of 64: {-(-(count - 1) // 64)}" in shown
    for name, part in (("eval_loss", documents[180:196]), ("test_loss", documents[196:])):
        assert log[-1][name] == pytest.approx(naive_loss(tmp_path / "run", part, 64), rel=1e-5)


def test_the_first_loss_is_that_of_the_rows_one_by_one(pretrain_flags, tokens, tiny_folder, tmp_path):
    """A step of the whole epoch, nothing of which is split off: every row once, in whatever order."""
    pretrain(pretrain_flags(gradient_accumulation_steps=100, max_steps=1, warmup_steps=0, split="1"))
    (line,) = read_log(tmp_path / "run" / "log.jsonl")
    assert line["loss"] == pytest.approx(naive_loss(tiny_folder, documents_of(TokenFiles(tokens)), 64), rel=1e-5)
    assert "eval_loss" not in line and "test_loss" not in line


def test_epochs_are_counted_and_rates_fall_to_the_minimum(pretrain_flags, tokens, tmp_path):
    rows = -(-(TokenFiles(tokens).start(180) - 1) // 64)
    pretrain(pretrain_flags(per_device_train_batch_size=16, max_steps=-1, num_train_epochs=2, decay_steps=5))
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert len(log) == 2 * -(-rows // 16) and len(log) > 7
    rates = [line["learning_rate"] for line in log]
    assert rates[:6] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 7e-4, 4e-4, 1e-4])
    assert rates[5:] == pytest.approx([1e-4] * (len(log) - 5))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_stopped_run_resumes_bit_by_bit(pretrain_flags, tmp_path, monkeypatch, bf16):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"bf16": bf16, "eval_steps": 2, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    pretrain(pretrain_flags(output_dir=str(whole), **changes))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        assert pretrain(pretrain_flags(output_dir=str(stopped), **changes)) == 128 + signal.SIGTERM
    assert pretrain(pretrain_flags(output_dir=str(stopped), resume_from_checkpoint="last", **changes)) == 0
    for name in ("loss", "eval_loss", "test_loss", "learning_rate"):
        one, other = ([line.get(name) for line in read_log(run / "log.jsonl")] for run in (whole, stopped))
        assert one == other, name
    assert_same_weights(whole, stopped)


def command(flags, *launch):
    given = {name: value for name, value in dataclasses.asdict(flags).items() if value is not None}
    return [
        sys.executable,
        *launch,
        str(EXAMPLE / "pretrain.py"),
        *(f"--{name}={value}" for name, value in given.items()),
    ]


def test_a_killed_run_resumes_bit_by_bit(pretrain_flags, tmp_path):
    """In the second epoch, whose order must be found again."""
    changes = {
        "max_steps": 36,
        "save_steps": 4,
        "save_total_limit": 2,
        "per_device_train_batch_size": 16,
        "split": "98,2",
    }
    killed = pretrain_flags(output_dir=str(tmp_path / "killed"), **changes)
    saved = tmp_path / "killed" / "checkpoint-12"
    with subprocess.Popen(command(killed), env=environment(), stdout=-3, stderr=-3) as process:
        try:
            deadline = time.monotonic() + HANGING
            while not saved.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    whole = dataclasses.replace(killed, output_dir=str(tmp_path / "whole"))
    for words in ([*command(killed), "--resume_from_checkpoint=last"], command(whole)):
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 36
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_two_copies_train_as_one_process_which_may_go_on_with_their_run(pretrain_flags, tmp_path):
    """Evaluation and test too, of rows that do not divide evenly."""
    flags = {"eval_steps": 3, "eval_iters": 2}
    two = pretrain_flags(output_dir=str(tmp_path / "two"), per_device_train_batch_size=1, save_steps=3, **flags)
    log = str(tmp_path / "log")
    launch = [LAUNCH, "--nproc_per_node", "2", "--log_dir", log]
    done = subprocess.run(command(two, *launch), env=environment(), capture_output=True, timeout=HANGING, check=False)
    assert done.returncode == 0, printed(tmp_path / "log")
    assert "on 2 processes" in printed(tmp_path / "log")
    assert pretrain(pretrain_flags(output_dir=str(tmp_path / "one"), **flags)) == 0
    more = {"output_dir": str(tmp_path / "more"), "resume_from_checkpoint": str(tmp_path / "two" / "checkpoint-3")}
    assert pretrain(pretrain_flags(**more, **flags)) == 0
    many, one, rest = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one", "more"))
    for found, expected in ((many, one), (rest, one[3:])):
        assert len(found) == len(expected)
        for name in ("loss", "learning_rate"):
            np.testing.assert_allclose([line[name] for line in found], [line[name] for line in expected], rtol=1e-5)
        for name in ("eval_loss", "test_loss"):
            assert found[-1][name] == pytest.approx(expected[-1][name], rel=1e-5)
    assert many[2]["eval_loss"] == pytest.approx(one[2]["eval_loss"], rel=1e-5)


def test_a_step_without_a_target_has_no_loss_and_no_gradient(pretrain_flags, tmp_path, monkeypatch):
    """The last row of these files has ends of documents alone, which predict nothing; evaluated are such rows only."""
    megatron(tmp_path / "short", [[[*range(100, 165)]], [[7]], [[7]], [[7]]])
    changes = {"input_dir": str(tmp_path / "short"), "per_device_train_batch_size": 1, "max_steps": 2}
    norms, step = [], AdamW.step
    monkeypatch.setattr(AdamW, "step", lambda self, rate: norms.append(step(self, rate)))
    pretrain(pretrain_flags(**changes, split="50,0,0"))
    found = losses(tmp_path / "run")
    assert sorted(loss > 0 for loss in found) == [False, True]
    assert [norm > 0 for norm in norms] == [loss > 0 for loss in found]
    with pytest.raises(ValueError, match="pretrain: data to evaluate must have at least one target, got none"):
        pretrain(pretrain_flags(**changes, split="50,50", output_dir=str(tmp_path / "evaluated")))


def test_evaluation_batches_are_limited(pretrain_flags, tmp_path, monkeypatch):
    seen = []
    evaluate = Trainer.evaluate

    def watched(self, batches):
        seen.append(sum(len(batch.input_ids) for batch in self._batches(batches, batches.rows(), 3)))
        return evaluate(self, batches)

    monkeypatch.setattr(Trainer, "evaluate", watched)
    pretrain(pretrain_flags(max_steps=1, warmup_steps=0, eval_iters=1, per_device_eval_batch_size=3))
    valid, test = seen
    assert (valid, test) == (3, 4)  # of 18 and 4 rows


def test_the_whole_folder_goes_on_and_answers(pretrain_flags, tiny_folder, tmp_path):
    """A pretrained folder is one to start from, tokenizer included, and bytes of tokenizer.json are kept."""
    pretrain(pretrain_flags(max_steps=1, warmup_steps=0))
    run = tmp_path / "run"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (run / name).read_bytes() == (tiny_folder / name).read_bytes()
    more = pretrain_flags(model_name_or_path=str(run), output_dir=str(tmp_path / "more"), max_steps=1, warmup_steps=0)
    assert pretrain(more) == 0 and weights(tmp_path / "more")


def test_token_files_are_named_by_prefix_or_folder(pretrain_flags, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tokens.parent)
    assert pretrain_flags(input_dir=".").prefixes() == pretrain_flags(input_dir="texts").prefixes() == [Path("texts")]
    assert pretrain_flags(input_dir=str(tokens.parent)).prefixes() == pretrain_flags().prefixes() == [tokens]
    with pytest.raises(
        ValueError, match="--input_dir must be PREFIX, or a folder with pairs of PREFIX.bin and PREFIX.idx"
    ):
        pretrain_flags(input_dir=str(tmp_path)).prefixes()
    (tmp_path / "several").mkdir()
    for name in ("b.2", "a"):
        write(tmp_path / "several" / name, [[1]])
    assert pretrain_flags(input_dir=str(tmp_path / "several")).prefixes() == [
        tmp_path / "several" / name for name in ("a", "b.2")
    ]
    write(tmp_path / "several", [[1]])  # the pair of the name goes before what is in the folder
    assert pretrain_flags(input_dir=str(tmp_path / "several")).prefixes() == [tmp_path / "several"]


def test_each_of_several_pairs_is_split(pretrain_flags, tokens, tmp_path, capsys):
    documents = documents_of(TokenFiles(tokens))
    (tmp_path / "pairs").mkdir()
    for name, part in (("a", documents[:50]), ("b", documents[50:70])):
        megatron(tmp_path / "pairs" / name, [[ids] for ids in part])
    pretrain(pretrain_flags(input_dir=str(tmp_path / "pairs"), split="8,1,1", max_steps=1, warmup_steps=0))
    shown = capsys.readouterr().out
    for name, of_a, of_b in (
        ("training", (0, 40), (50, 66)),
        ("evaluation", (40, 45), (66, 68)),
        ("test", (45, 50), (68, 70)),
    ):
        parts = [documents[slice(*each)] for each in (of_a, of_b)]
        counts = [sum(map(len, part)) for part in parts]
        rows = sum(-(-(count - 1) // 64) for count in counts)
        assert f"{name}: {sum(counts)} tokens of {sum(map(len, parts))} documents, rows of 64: {rows}" in shown


def test_files_of_other_programs_are_trained_on(pretrain_flags, tokens, tmp_path):
    """The same documents in Megatron's own hand, in two sequences each: the same losses."""
    documents = [[ids[:3], ids[3:]] for ids in documents_of(TokenFiles(tokens))]
    prefix = megatron(tmp_path / "theirs", documents, 4, "i")
    for name, path in (("ours", tokens), ("theirs", prefix)):
        pretrain(pretrain_flags(output_dir=str(tmp_path / name / "run"), input_dir=str(path), max_steps=2))
    assert losses(tmp_path / "ours" / "run") == losses(tmp_path / "theirs" / "run")


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"split": "0,1"},
            "--split must be one to three numbers of at least 0, such as 949,50,1, the first above 0, got 0,1",
        ),
        ({"split": "1,1,1,1"}, "--split must be one to three numbers"),
        ({"split": "0.001,1,1"}, "--split must be one that leaves training some of 200 documents, got 0.001,1,1"),
        ({"split": "1", "eval_steps": 2}, "--eval_steps must be left out without evaluation samples"),
        ({"max_seq_length": 1}, "--max_seq_length must be at least 2, got 1"),
        ({"max_seq_length": 257}, "--max_seq_length must be at most 256, the model's positions, got 257"),
        ({"eval_iters": 0}, "--eval_iters must be at least 1"),
        ({"decay_steps": 2}, "--decay_steps must be above warmup_steps 2, got 2"),
        (CONSTANT | {"decay_steps": 5, "min_learning_rate": 0.0}, "--decay_steps must be left out with a constant"),
        (CONSTANT, "--min_learning_rate must be left out with a constant rate, got 0.0001"),
        ({"min_learning_rate": 1.0}, "--min_learning_rate must be at most learning_rate"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_training(pretrain_flags, tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        pretrain(pretrain_flags(**changes))
    assert f"pretrain: {words}" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_token_files_that_are_missing_are_named(pretrain_flags, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.idx: not found"):
        pretrain(pretrain_flags(input_dir=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_tokenizer_are_refused(pretrain_flags, tokens, tmp_path):
    other = tmp_path / "other"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text('{"src": "one one one", "tgt": "two two two"}')
    create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(tmp_path / "data"), str(other)))
    with pytest.raises(ValueError, match=f"--input_dir must hold tokens by the tokenizer of {other}, got {tokens}.bin"):
        pretrain(pretrain_flags(model_name_or_path=str(other)))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_data_and_flags_alone(pretrain_flags, tokens, tmp_path):
    pretrain(pretrain_flags(max_steps=2, save_steps=1))
    documents = documents_of(TokenFiles(tokens))
    documents[0][1] += 1
    for changes, words in (
        ({"split": "80,18,2"}, "--split must be '90,8,2' as in .*, got '80,18,2'"),
        ({"max_seq_length": 32}, "--max_seq_length must be 64 as in .*, got 32"),
        ({"input_dir": str(write(tmp_path / "other", documents))}, "--input_dir must hold tokens by the tokenizer"),
        (
            {"input_dir": str(megatron(tmp_path / "theirs", [[ids] for ids in documents]))},
            "the training data must be that",
        ),
    ):
        with pytest.raises(ValueError, match=f"pretrain: {words}"):
            pretrain(pretrain_flags(resume_from_checkpoint="last", **changes))
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tokens.parent.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert pretrain(pretrain_flags(resume_from_checkpoint="last", input_dir=str(moved))) == 0


def test_every_flag_that_decides_is_held_against_the_checkpoint(pretrain_flags):
    assert deciding(pretrain_flags(), Mesh()).keys() >= {
        "split",
        "max_seq_length",
        "decay_steps",
        "seed",
        "rows_per_step",
    }


def test_a_checkpoint_of_another_command_is_refused_as_such(sft_flags, pretrain_flags):
    state = training_state.TrainingState(1, "data", deciding(sft_flags(), Mesh()), {})
    flags = deciding(pretrain_flags(), Mesh())
    words = "pretrain: the checkpoint must be one of pretrain, got checkpoint-1, whose run had no --split"
    with pytest.raises(ValueError, match=words):
        training_state.require_same(state, "data", flags, Path("checkpoint-1"), "pretrain")


def test_an_older_checkpoint_without_a_decay_goes_on(pretrain_flags, tmp_path):
    flags = deciding(pretrain_flags(), Mesh())
    older = {name: value for name, value in flags.items() if name != "decay_steps"}
    state = training_state.TrainingState(1, "data", older, {})
    training_state.require_same(state, "data", flags, tmp_path, "pretrain")


def test_the_shipped_flag_files_are_read():
    required = ("--model_name_or_path", "m", "--input_dir", "d", "--output_dir", "o")
    found = {
        path.stem: flags_module.parse(PretrainFlags, [str(path), *required], "pretrain")
        for path in EXAMPLE.glob("configs/pretrain_*.json")
    }
    published = found["pretrain_llama2_13b"]
    assert (published.per_device_train_batch_size, published.gradient_accumulation_steps) == (2, 32)
    assert (published.learning_rate, published.min_learning_rate, published.warmup_steps) == (1e-5, 1e-6, 20)
    assert (published.max_steps, published.max_seq_length, published.bf16) == (2000, 4096, True)
    assert found.keys() == {"pretrain_llama2_13b", "pretrain_demo"}
