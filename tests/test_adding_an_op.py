"""docs/adding_an_op.md followed to the letter, in a copy of the checkout: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hanging import HANGING

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/adding_an_op.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.S | re.M))
LAYOUT = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    \.venv/bin/(.*)$", PAGE, re.M)
BUILT_FOR_TESTS = ("address", "arm64", "thread")  # in build/
IGNORED = shutil.ignore_patterns(
    "*.partial.o", ".venv*", ".git", ".*_cache", "*.egg-info", "docs", "examples", *BUILT_FOR_TESTS
)


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
    return folder, os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", "PYTHONWARNINGS": "ignore"}


def run(checkout, command):
    folder, environment = checkout
    program, _, arguments = command.partition(" ")
    start = {"python": [sys.executable], "fusionkit": [sys.executable, "-m", "fusionkit"]}[program]
    done = subprocess.run(
        [*start, *arguments.split()], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGING
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
    assert table == list(FILES) and f"| 0 | 2: the spec and the composition; {len(table) - 2} more if" in LAYOUT
    assert not [name for name in table if (ROOT / name).exists()]


def test_the_ops_of_cpu_have_the_files_of_the_guide():
    """There is one way to write an op: what all share names no op, and a decoder's layer has the headers of its ops."""
    csrc = ROOT / "backends/cpu/csrc"
    # Of fused_linear and paged_attention, for codes: the headers of their ops serve them too.
    forms = {"fused_linear_quantized", "quantized_linear", "paged_attention_int8"}
    ops = [
        path.stem for path in (csrc / "paddle").glob("*.cc") if path.stem not in {"host_view", "decoder_layer", *forms}
    ]
    names = [name for op in ops for name in (f"{op}.h", f"{op}.cc", f"python/bind_{op}.cc")]
    assert len(ops) >= 10 and not [name for name in names if not (csrc / name).exists()]
    assert "const Tensor&" not in (csrc / "fusionkit_cpu.h").read_text()


def test_the_guide_explains_what_its_files_call():
    """Each example stands in a file of the guide, which the tests below compile."""
    written = " ".join(" ".join(text for name, text in FILES.items() if "csrc" in name).split())
    section = PAGE.partition("## What do the C++ files call?")[2].partition("\n## ")[0]
    examples = re.findall(r"^```cpp\n(.*?)^```$", section, re.S | re.M)
    macros = set(re.findall(r"FUSIONKIT_[A-Z]\w+(?=\()", written)) - {"FUSIONKIT_RELU_SQUARED"}
    assert macros and all(f"`{macro}`" in section for macro in macros)
    assert len(examples) >= 10 and not [each for each in examples if " ".join(each.split()) not in written]


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


LEAKY = {  # what an argument `slope` changes: y = max(x, 0)^2 + slope x
    "fusionkit/ops/relu_squared.py": {
        "def relu_squared(x: Any)": "def relu_squared(x: Any, *, slope: float = 0.0)",
        "x: Array, *, rounding": "x: Array, *, slope: float = 0.0, rounding",
        "np.maximum(x, 0.0) ** 2": "np.maximum(x, 0.0) ** 2 + slope * x",
        "2.0 * np.maximum(x, 0.0)": "(2.0 * np.maximum(x, 0.0) + slope)",
    },
    "fusionkit/eager/relu_squared.py": {
        "def relu_squared(x: Any)": "def relu_squared(x: Any, *, slope: float = 0.0)",
        "(rectified * rectified)": "(rectified * rectified + slope * x)",
    },
}
# No C++ is compiled for it: only what the kernel declares is of interest.
CALLS = """
import numpy as np
import fusionkit as fk
from fusionkit_backends.cpu import relu_squared as kernel
kernel.through_numpy = lambda x: np.full_like(x, 7)
x = np.ones((2, 8), "f")
print(fk.relu_squared(x)[0, 0], fk.relu_squared(x, slope=0.5)[0, 0])
print(fk.relu_squared.explain(x, slope=0.5))
"""


def test_an_argument_changes_the_spec_and_the_kernels_that_support_it(checkout):
    write(checkout, [name for name in FILES if name.endswith(".py")])
    for name, changes in LEAKY.items():
        text = FILES[name]
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (checkout[0] / name).write_text(text, encoding="utf-8")
    (checkout[0] / "calls.py").write_text(CALLS)
    assert (
        "| an argument of an op | the spec, the composition and each kernel that supports the argument | 0 |" in LAYOUT
    )
    printed = run(checkout, "python calls.py")
    assert printed.splitlines()[0] == "7.0 1.5"
    assert "slope is not supported: it must be 0.0, got 0.5" in printed
