"""The commands as a shell starts them: from any folder, and where Paddle's own folder cannot be made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.llama.conftest import EXAMPLE

ROOT = EXAMPLE.parents[1]
COMMANDS = (
    *(
        "create",
        "tokenize_texts",
        "pretrain",
        "sft",
        "lora",
        "supervise",
        "merge",
        "quantize",
        "export",
        "predict",
        "demo",
    ),
    *("data.adverts", "bench.step", "bench.tensor_parallel", "bench.load_memory", "bench.step_ops"),
    *("bench.engine_step", "bench.decode", "bench.perplexity"),
)


def run(words, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=clean | environment, capture_output=True, text=True)


def file(command):
    path = EXAMPLE / command.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_a_file_from_any_folder(tmp_path, command):
    done = run([file(command), "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"python -m examples.llama2_13b.{command}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_processes_that_a_file_starts_find_the_repository(tmp_path):
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import examples'], check=True)"
    (tmp_path / "started.py").write_text(f"import sys; sys.path[:0] = [{str(EXAMPLE)!r}]; import repository; {start}")
    done = run(["started.py"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("in_the_way", [".cache", ".cache/paddle"])
@pytest.mark.parametrize("words", [["-m", "examples.llama2_13b.predict"], [EXAMPLE / "sft.py"]], ids=["module", "file"])
def test_a_file_where_paddles_folder_must_be_is_one_line(tmp_path, words, in_the_way):
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.touch()
    done = run([*words, "--help"], ROOT, HOME=str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: Paddle needs the folder {tmp_path}/.cache/paddle/dataset: Not a directory. Remove what is in its way "
        f"under {tmp_path}, or set HOME to a folder that can be written"
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_so(tmp_path, command):
    (tmp_path / ".cache").touch()
    done = run([file(command), "--help"], tmp_path, HOME=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("error: Paddle needs") and len(done.stderr.splitlines()) == 1
