"""docs/adding_an_op.md followed to the letter, in a copy of the checkout: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/adding_an_op.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.S | re.M))
COMMANDS = re.findall(r"^    \.venv/bin/(.*)$", PAGE, re.M)
IGNORED = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", "docs", "examples")


@pytest.fixture
def checkout(tmp_path):
    """A copy with what is built, and the environment in which Python takes its packages."""
    folder = tmp_path / "copy"
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    site = folder.with_name("site")
    (site / "fusionkit_backends").mkdir(parents=True)
    for init in (folder / "backends").glob("*/__init__.py"):
        (site / "fusionkit_backends" / init.parent.name).symlink_to(init.parent)
    for package in ("emulator", "bench", "planner"):
        if (folder / package).exists():
            (site / f"fusionkit_{package}").symlink_to(folder / package)
    path = os.pathsep.join([str(site), str(folder)])
    return folder, os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}


def run(checkout, command):
    folder, environment = checkout
    program, _, arguments = command.partition(" ")
    start = {"python": [sys.executable], "fusionkit": [sys.executable, "-m", "fusionkit"]}[program]
    done = subprocess.run(
        [*start, *arguments.split()], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout


def write(checkout, names):
    for name in names:
        path = checkout[0] / name
        assert not path.exists(), f"{name} is there already: the guide would change it"
        path.write_text(FILES[name], encoding="utf-8")


def test_the_guide_names_every_file_that_it_shows():
    """A new op touches these files, and they are new."""
    table = re.findall(r"^\| `([\w/.]+)` \|", PAGE, re.M)
    assert table == list(FILES) and len(table) == 8
    assert not [name for name in table if (ROOT / name).exists()]


def test_an_op_that_cpu_lacks_is_right_on_eager(checkout):
    """Two files. What the tests derive from declarations does not ask cpu for it."""
    write(checkout, [name for name in FILES if "backends" not in name])
    assert re.search(r"^relu_squared +y +- ", run(checkout, "fusionkit ops"), re.M)
    build = next(number for number, command in enumerate(COMMANDS) if "build_ext" in command)
    assert build == 3
    outputs = [run(checkout, command) for command in COMMANDS[:build]]
    assert re.search(r"eager: (\d+) of \1 cases right", outputs[1]) and " passed" in outputs[2]
    derived = "tests/test_layouts.py tests/test_host_memory.py tests/test_static.py tests/test_second_derivatives.py"
    collected = run(checkout, f"python -m pytest --collect-only -q {derived} tests/test_cpu_backend.py")
    assert "swiglu" in collected and "relu_squared" not in collected


def test_an_op_with_a_cpu_kernel_is_proven_by_the_commands_of_the_guide(checkout):
    write(checkout, FILES)
    assert len(COMMANDS) == 8
    outputs = [run(checkout, command) for command in COMMANDS[3:]]
    assert re.search(r"cpu: (\d+) of \1 cases right", outputs[1])
    assert all(re.search(r"[1-9]\d* passed", output) and " failed" not in output for output in outputs[2:])
    assert re.search(r"^relu_squared +y +yes ", run(checkout, "fusionkit ops"), re.M)
