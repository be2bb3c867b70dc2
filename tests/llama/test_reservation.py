"""One writer a folder: a second is refused at once, and a process that died holds nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.io.reservation import LOCK, new_file, reserved
from examples.llama2_13b.lora import LoraFlags, lora
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.pretrain import PretrainFlags, pretrain
from examples.llama2_13b.sft import sft
from examples.llama2_13b.tokenize_texts import TokenizeFlags, tokenize_texts
from examples.llama2_13b.train import run
from examples.llama2_13b.train.metrics import read_log
from examples.llama2_13b.train.training_state import checkpoints
from tests.hanging import HANGING
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.meshes import on_mesh
from tests.llama.test_sft import weights
from tests.llama.test_sft_processes import launched

ROOT = EXAMPLE.parents[1]
FLAG = "test: --output_dir"


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


def test_two_runs_started_together_end_with_one_whole_and_one_refused(tiny_folder, tmp_path):
    output = tmp_path / "run"
    flags = {"model_name_or_path": tiny_folder, "dataset_name_or_path": DATA, "output_dir": output, "src_length": 100}
    words = [f"--{name}={value}" for name, value in (flags | {"max_length": 256, "max_steps": 3}).items()]
    command = [sys.executable, "-m", "examples.llama2_13b.sft", *words]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    (refused,) = [text for run, text in zip(runs, told, strict=True) if run.returncode]
    assert "error: sft: --output_dir must " in refused and "Traceback" not in refused
    assert [line["step"] for line in read_log(output / "log.jsonl")] == [1, 2, 3] and weights(output)
    assert not (output / LOCK).exists()


def test_every_writer_is_refused_while_another_writes(sft_flags, tiny_folder, tmp_path):
    output = tmp_path / "run"
    config = str(EXAMPLE / "configs" / "tiny.json")
    pretrain_flags = PretrainFlags(model_name_or_path=str(tiny_folder), input_dir="tokens", output_dir=str(output))
    with reserved(output, FLAG):
        for write, flags, name in (
            (sft, sft_flags(overwrite_output_dir=True), "sft: --output_dir"),
            (create, CreateFlags(config, str(DATA), str(output), overwrite_output_dir=True), "create: --output_dir"),
            (export, ExportFlags(str(tiny_folder), str(output)), "export: --output_path"),
            (pretrain, pretrain_flags, "pretrain: --output_dir"),
            (lora, LoraFlags(**dataclasses.asdict(sft_flags())), "lora: --output_dir"),
        ):
            with pytest.raises(ValueError, match=f"{name} must be one that no other process writes, got {output}"):
                write(flags)
        assert [path.name for path in output.iterdir()] == [LOCK]
    assert not output.exists()
    assert export(ExportFlags(str(tiny_folder), str(output))) == 0
    assert not (output / LOCK).exists()


def test_a_run_of_several_processes_ends_while_another_writes(tiny_folder, few_samples, tmp_path):
    output = tmp_path / "run"
    with reserved(output, FLAG):
        (output / "mine").touch()
        code, logs = launched(2, output, tiny_folder, tmp_path / "log", dataset_name_or_path=few_samples)
        assert code != 0
        assert f"error: sft: --output_dir must be one that no other process writes, got {output}" in logs
        assert sorted(path.name for path in output.iterdir()) == [LOCK, "mine"]


def test_no_process_looks_into_the_folder_before_it_is_the_runs(tmp_path, monkeypatch):
    """Another run may still give a checkpoint its name: then processes would go on from different ones."""
    output = tmp_path / "run"
    flags = SimpleNamespace(
        COMMAND="test", device=None, output_dir=str(output), sharding="", tensor_parallel_degree=1,
        pipeline_parallel_degree=1, virtual_pp_degree=1, sequence_parallel=True,
    )  # fmt: skip

    @contextlib.contextmanager
    def late(folder, flag):
        time.sleep(0.3)
        (folder / "checkpoint-1").mkdir(parents=True)
        yield

    def start(mesh):
        mine.mesh = mesh
        return run.start(flags, lambda mesh: checkpoints(output))

    mine = threading.local()
    monkeypatch.setattr(run, "reserved", late)
    monkeypatch.setattr(run.Mesh, "join", lambda *_, **degrees: mine.mesh)
    assert on_mesh(Degrees(data=2), start) == [[output / "checkpoint-1"]] * 2


def test_token_files_of_a_name_have_one_writer(tiny_folder, tmp_path):
    """Others may be written into the same folder meanwhile."""
    (tmp_path / "texts.txt").write_text("a text")
    flags = TokenizeFlags(str(tiny_folder), str(tmp_path / "texts.txt"), str(tmp_path / "tokens" / "all"))
    with reserved(tmp_path / "tokens", "test: the same", ".all.lock"):
        with pytest.raises(
            ValueError, match="tokenize_texts: --output_prefix must be one that no other process writes"
        ):
            tokenize_texts(flags)
        assert tokenize_texts(dataclasses.replace(flags, output_prefix=str(tmp_path / "tokens" / "more"))) == 0
    assert tokenize_texts(flags) == 0
    endings = ("about.json", "bin", "idx")
    expected = [f"{name}.{ending}" for name in ("all", "more") for ending in endings]
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == expected


def test_a_file_of_answers_has_one_writer(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported")))
    answers = tmp_path / "answers.json"
    answers.write_text("older\n")
    flags = PredictFlags(str(tmp_path / "exported"), ("a",), output_file=str(answers), max_length=2)
    with new_file(answers, "test: --output_file") as other:
        other.write("mine\n")
        other.flush()
        with pytest.raises(ValueError, match="predict: --output_file must be one that no other process writes"):
            predict(flags)
        assert answers.read_text() == "mine\n"
    assert predict(flags) == 0
    assert answers.read_text().count("\n") == 1 and "mine" not in answers.read_text()
    with new_file(Path("/dev/null"), "test"), new_file(Path("/dev/null"), "test"):
        pass


HOLD = """
import sys
from pathlib import Path
from examples.llama2_13b.io.reservation import reserved
with reserved(Path(sys.argv[1]), "test: --output_dir"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_nothing(tmp_path):
    folder = tmp_path / "a" / "run"
    with python(HOLD, folder, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="no other process"), reserved(folder, FLAG):
            pass
        process.kill()
    assert (folder / LOCK).exists()
    with reserved(folder, FLAG):
        (folder / "work").touch()
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_what_was_made_and_stayed_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), reserved(tmp_path / "a" / "b", FLAG):
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with reserved(tmp_path / "mine", FLAG):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


CONTEND = """
import os, sys
from pathlib import Path
from examples.llama2_13b.io.reservation import reserved
folder, held = Path(sys.argv[1]), 0
while held < 50:
    try:
        with reserved(folder, "test: --output_dir"):
            os.close(os.open(folder.with_name("alone"), os.O_CREAT | os.O_EXCL))
            folder.with_name("alone").unlink()
            held += 1
    except ValueError:
        pass
"""


def test_one_at_a_time_however_many_come(tmp_path):
    """The file goes away with its owner, and the folder too: nobody may hold a lock on what is gone."""
    processes = [python(CONTEND, tmp_path / "run") for _ in range(4)]
    for process in processes:
        process.communicate(timeout=HANGING)
    assert [process.returncode for process in processes] == [0] * 4


def test_a_file_system_without_locks_is_a_line(tmp_path, monkeypatch, capfd):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with reserved(tmp_path / "run", FLAG):
        pass
    assert "cannot be locked (No locks available)" in capfd.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with (
        pytest.raises(ValueError, match="test: --output_dir must be a folder, got the file"),
        reserved(tmp_path / "run", FLAG),
    ):
        pass
