"""Every command in the documents runs, here or in a test that the page names, or is named as not run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fusionkit_backends.gcu import health as gcu
from fusionkit_backends.gpu import health as gpu
from fusionkit_backends.npu import health as npu
from fusionkit_backends.xpu import health as xpu

from fusionkit import pci, registry
from fusionkit.cli.doctor import Section, title_of
from fusionkit.frameworks import custom_device
from tests.prose import PAGES, ROOT

PROGRAMS = """fusionkit pip python python3 make docker sudo unshare apt-get bash source export
lspci lscpu npu-smi xpu-smi efsmi nvidia-smi"""
COMMAND = re.compile(rf"(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS.split())})(?:\s|$)")
BLOCK = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*) -->\n\s*?)?"
    r"(?:```(?P<language>\w*)\n(?P<fenced>.*?)```|(?P<indented>(?:^ {4,}\S[^\n]*\n)+))",
    re.DOTALL | re.MULTILINE,
)
CARDS = {
    npu: ("0x19e5", "0xd802"),
    gcu: ("0x1e36", "0x0001"),
    gpu: ("0x10de", "0x20b2"),
    xpu: ("0x1d22", "0x3684"),
}
NAMES = {npu: "npu", gcu: "gcu", gpu: "gpu", xpu: "xpu"}


def command_blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """The marker before a block, and the commands in it. A line that ends with a backslash goes on."""
    for match in BLOCK.finditer(page):
        text = re.sub(r"\\\n\s*", "", match["fenced"] or match["indented"] or "")
        lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
        commands = [line for line in lines if COMMAND.match(line)]
        if commands and match["language"] in (None, "", "sh", "bash", "console"):
            yield match["marker"] or "", commands


def to_run(page: str) -> list[list[str]]:
    """The commands of blocks without a marker."""
    marked = [(marker.partition(": ")[0], commands) for marker, commands in command_blocks(page)]
    unmarked = [commands for kind, commands in marked if kind not in ("run by", "not run", "doctor")]
    return [shlex.split(command, comments=True) for commands in unmarked for command in commands]


def run_elsewhere(page: str) -> Iterator[tuple[list[str], list[str]]]:
    """The files that `run by` names, and the block's commands."""
    for marker, commands in command_blocks(page):
        kind, _, files = marker.partition(": ")
        if kind == "run by":
            yield files.split(", "), commands


def words_of(command: str) -> list[str]:
    """What a test that runs the command has to name: its module, file or target, and its own long options. What pip
    installs has no word: a test has to read the page."""
    own = re.split(r"\s--\s|\s#", command)[0]
    programs = re.findall(r"-m ([\w.]+)|(\w+)\.py\b|fusionkit (\w+)|make ([\w-]+)", own)
    return [next(filter(None, each)).split(".")[-1] for each in programs] + re.findall(r"\s--([\w-]+)", own)


@pytest.mark.parametrize("name", PAGES)
def test_a_file_that_runs_a_pages_commands_reads_the_page_or_has_their_words(name):
    for files, commands in run_elsewhere((ROOT / name).read_text()):
        text = "".join((ROOT / file).read_text() for file in files)
        absent = [
            command for command in commands if not words_of(command) or any(w not in text for w in words_of(command))
        ]
        reads = f'{Path(name).name}"' in text or f"{Path(name).parent}/{{" in text
        assert reads or not absent, (files, absent)


def test_words_of_a_command_are_its_own():
    assert words_of("python -m a.b.lora FLAGS --lora_rank 8 -- python -m launch --nproc 2") == ["lora", "lora_rank"]
    assert words_of("fusionkit emulate npu --devices 2 -- bash run.sh --x") == ["emulate", "devices"]
    assert words_of("python bench_gpu.py --dry-run   # not --json") == ["bench_gpu", "dry-run"]
    assert words_of("make wheel") == ["wheel"]
    assert not words_of("pip install -v '.[paddle]'")


@pytest.mark.parametrize("name", PAGES)
def test_commands_run_or_are_named_as_not_run(name):
    """`<!-- not run: why -->` or `<!-- run by: files -->` stands before a block. The other blocks run here."""
    calls = to_run((ROOT / name).read_text())
    quick = [
        call for call in calls if call[0].endswith("fusionkit") and call[1] in ("ops", "explain", "plan", "parity")
    ]
    snippets = [call for call in calls if call[0].endswith("python") and call[1] == "-c"]
    others = [call for call in calls if call not in quick + snippets]
    assert not others, f"mark the block with `run by` or `not run`: {others}"
    code = f"""
from fusionkit.cli import main
for code in {[call[2] for call in snippets]!r}:
    exec(code)
for arguments in {[call[1:] for call in quick]!r}:
    assert not main(arguments), arguments
"""
    if calls:
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr[-2000:] + run.stdout[-2000:]


@pytest.mark.parametrize("name", PAGES)
def test_a_command_within_a_sentence_names_what_exists(name):
    page = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`(?:sudo )?(?:\.venv/bin/)?((?:fusionkit|make|python -m) [^`]+)`", page):
        words = command.replace("python -m", "python").split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        elif words[0] == "fusionkit":
            assert words[1].startswith("-") or words[1] in COMMANDS, command
        elif not words[1].startswith("paddle."):
            assert (ROOT / f"{words[1].replace('.', '/')}.py").exists(), command


COMMANDS = "ops explain doctor parity bench emulate plan sizes".split()  # sizes: invented by a guide


def test_a_command_without_a_marker_is_found():
    page = "<!-- not run: why -->\n```\nmake a\n```\n\n    make b \\\n        c\n    text\n\n```python\nmake = 1\n```\n"
    assert list(command_blocks(page)) == [("not run: why", ["make a"]), ("", ["make b c"])]
    assert to_run(page) == [["make", "b", "c"]]


@pytest.mark.parametrize("device", ["npu", "gcu"])
def test_the_commands_for_a_machine_without_the_card_run(device, monkeypatch):
    """What the vendor's own scripts export is asked for beside emulated devices too; all else is well."""
    for name, values in gcu.ENVIRONMENT.items() if device == "gcu" else ():
        monkeypatch.setenv(name, values[0] if values else "true")
    page = (ROOT / f"docs/install/{device}.md").read_text()
    (commands,) = [c for marker, c in command_blocks(page) if marker == "run by: tests/test_commands_in_documents.py"]
    doctor, parity = (run_with_this_python(command) for command in commands)
    assert "Everything is well." in doctor, doctor
    assert f"{device} is emulated" in doctor
    assert f"{NONE[device]}: none: a device that Paddle shows here is emulated" in doctor
    assert re.search(rf"{device}: (\d+) of \1 cases right", parity)


def test_the_example_on_emulated_devices_prints_what_the_page_says(tmp_path):
    page = (ROOT / "docs/emulator.md").read_text()
    (command,) = [c for marker, (c, *_) in command_blocks(page) if marker.endswith("test_commands_in_documents.py")]
    example, shown = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", page, re.DOTALL).groups()
    (tmp_path / "example.py").write_text(example)
    call = shlex.split(command.replace("python", shlex.quote(sys.executable)))
    ran = subprocess.run([sys.executable, "-m", *call], cwd=tmp_path, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert [line for line in ran.stdout.splitlines() if line in shown.splitlines()] == shown.splitlines()


@pytest.mark.parametrize(
    "number, shown", [(0, '"src": "type#chocolate*cocoa#70%*flavour#sea salt*format#bar"'), (1, "model and log.jsonl")]
)
def test_a_journey_of_the_llama_example_runs_as_written(tmp_path, number, shown):
    """Trained for two steps instead of 1,334: what the demo learns has a test of its own."""
    page = (ROOT / "examples/llama2_13b/README.md").read_text()
    journeys = [c for marker, c in command_blocks(page) if marker.endswith("test_commands_in_documents.py")]
    assert len(journeys) == 2
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in journeys[number]:
        trains = ".sft " in command or ".pretrain " in command
        short = "--max_steps 2 --eval_steps 2 --warmup_steps 1" if trains else ""
        call = shlex.split(f"{sys.executable} {command.removeprefix('python ')} {short}")
        run = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, f"{command}\n{run.stderr[-2000:]}"
    assert shown in run.stdout


NONE = {"npu": "Ascend card", "gcu": "Enflame card"}


def run_with_this_python(command: str) -> str:
    call = shlex.split(command)
    call = [part for word in call for part in ([sys.executable, "-m", "fusionkit"] if word == "fusionkit" else [word])]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with one card of each kind and nothing installed for it."""
    for health, (vendor, device) in CARDS.items():
        card = tmp_path / f"pci/{NAMES[health]}"
        card.mkdir(parents=True)
        for name, value in zip(("vendor", "device", "class"), (vendor, device, "0x030200"), strict=True):
            (card / name).write_text(value)
    monkeypatch.setattr(pci, "DEVICES", tmp_path / "pci")
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in (*gcu.ENVIRONMENT, "ASCEND_TOOLKIT_HOME", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def equip(monkeypatch, folder):
    """What the backends look at, as it would be beside a card that works."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/{'local/' * (name == 'npu-smi')}bin/{name}")
    monkeypatch.setattr(npu, "_driver", lambda: npu.Check("driver", True, "23.0.3"))
    toolkit = folder / "ascend_toolkit_install.info"
    toolkit.write_text("version=8.0.0\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(folder))
    for name, values in gcu.ENVIRONMENT.items():
        monkeypatch.setenv(name, values[0] if values else "true")
    monkeypatch.setattr(custom_device, "missing", lambda device: None)
    monkeypatch.setattr(custom_device, "argument_counts", lambda op: (1, 1))
    for health in (gpu, xpu):
        monkeypatch.setattr(health, "built_for", lambda entry: "VERSION")
    monkeypatch.setattr(gpu, "torch_incomplete", lambda: None)
    monkeypatch.setattr(xpu, "paddle_xpu_nn_missing", lambda: None)


@pytest.mark.parametrize("health", CARDS, ids=NAMES.get)
@pytest.mark.parametrize("state", ["bare", "well"])
def test_doctor_prints_what_the_guide_shows(state, health, bare, monkeypatch):
    if state == "well":
        equip(monkeypatch, bare)
    name = NAMES[health]
    page = (ROOT / f"docs/install/{name}.md").read_text()
    shown = re.search(rf"<!-- doctor: {name} {state} -->\n```\n(.*?)```", page, re.DOTALL)[1]
    (title,) = [title_of(plugin) for plugin in registry.plugins() if plugin.name == name]
    assert str(Section(title, tuple(health.checks()))) == shown.strip().replace("FOLDER", str(bare))
