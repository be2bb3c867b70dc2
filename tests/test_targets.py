"""backends/cpu/targets.py is the only list of targets, and what the build makes of it."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fusionkit_backends.cpu import runtime, targets

import fusionkit as fk
from native.build import FLAGS, SOURCE_DIR, Variant
from native.incremental import compiler

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/adding_a_target.md").read_text(encoding="utf-8")
PROGRAMS = ROOT / "tests/native/tiles"
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for x86")


def compile_here(*arguments):
    flags = [flag for flag in FLAGS if flag != "-O3"]
    command = [*compiler(), *flags, "-O1", "-I.", f"-I{SOURCE_DIR}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def followed(tmp_path):
    """What the build plans when the guide's row stands in the table."""
    (row,) = re.findall(r"```python\n(Target\(.*?),?\n```", PAGE, re.S)
    code = f"""
import json
from native import build
from native.build import targets
Target = targets.Target
targets.TARGETS = ({row}, *targets.TARGETS)
targets.NAMES = tuple(each.name for each in targets.TARGETS)
variant = build.Variant("native")
steps = {{step.name: step.command(step.object) for step in variant.kernel_library() if step.isa == "avx2_vnni"}}
print(json.dumps([variant.isas, steps, variant.targets_header()]))
"""
    # Run where the build writes into a folder of its own.
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("native", "backends", "fusionkit"):
        (copy / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    isas, steps, header = json.loads(done.stdout)
    (copy / "build/native/targets.h").write_text(header)
    return copy, isas, steps


@X86
def test_the_guides_row_is_a_target(tmp_path):
    copy, isas, steps = followed(tmp_path)
    assert isas == ["avx2_vnni", *(each.name for each in targets.of_machine("x86_64"))]
    assert list(steps) == ["backends/cpu/csrc/kernels/scale.cc for avx2_vnni"]
    (command,) = steps.values()
    assert {"-mavx2", "-mavxvnni", "-DFUSIONKIT_LIKE=avx2"} <= set(command)
    dispatch = f'-DFUSIONKIT_TARGETS="{copy}/build/native/targets.h"'
    for source in ("scale", "swiglu", "isa"):
        compile_here(dispatch, "-c", SOURCE_DIR / f"{source}.cc", "-o", copy / f"{source}.o")
    flags = [flag for flag in command if flag.startswith(("-m", "-DFUSIONKIT_ISA", "-DFUSIONKIT_LIKE"))]
    compile_here(*flags, dispatch, "-c", SOURCE_DIR / "kernels/scale.cc", "-o", copy / "kernel.o")
    assert "fusionkit_cpu::avx2_vnni::scale(" in symbols(copy / "kernel.o", defined=True)
    assert "fusionkit_cpu::avx2_vnni::scale(" in symbols(copy / "scale.o", defined=False)
    inherited = symbols(copy / "swiglu.o", defined=False)
    assert "avx2_vnni" not in inherited and "fusionkit_cpu::avx2::swiglu(" in inherited


def symbols(file, *, defined):
    kind = "--defined-only" if defined else "--undefined-only"
    return subprocess.run(["nm", "-C", kind, file], capture_output=True, text=True, check=True).stdout


def test_the_guide_names_every_field_and_the_files():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(targets.Target._fields)
    layout = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
    assert "| [a target](adding_a_target.md) | 1: `backends/cpu/targets.py` | 0; 1 if it has a matrix unit |" in layout


def test_no_other_file_lists_the_targets():
    patterns = ("native/*.py", "backends/cpu/**/*.py", "backends/cpu/csrc/**/*.[ch]*")
    sources = [path for pattern in patterns for path in ROOT.glob(pattern)]
    named = re.compile(rf"""["']({"|".join(targets.NAMES)})["']|namespace ({"|".join(targets.NAMES)})\b""")
    assert [path.name for path in sources if named.search(path.read_text(encoding="utf-8"))] == ["targets.py"]


def test_documents_name_every_target():
    settings = (ROOT / "docs/choosing_a_backend.md").read_text(encoding="utf-8")
    assert f"| `FUSIONKIT_CPU_ISA` | {', '.join(targets.NAMES)};" in settings
    install = (ROOT / "docs/install/cpu.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| .* \| `(\w+)`: .*\||^\| .* \| `(\w+)` \|", install, re.M)) and all(
        f"`{name}`" in install for name in targets.NAMES
    )


def test_targets_stand_from_the_best_to_one_that_every_processor_has():
    for at, target in enumerate(targets.TARGETS):
        assert target.like is None or targets.NAMES.index(target.like) > at
        assert target.kernels is None or target.like is not None
        assert all((ROOT / SOURCE_DIR / f"kernels/{name}.cc").exists() for name in target.kernels or ())
    last = targets.TARGETS[-1]
    assert (last.features, last.machine, last.kernels) == ("", "any", None)


def test_models_are_there_where_the_target_below_runs(native):
    built = json.loads((ROOT / "backends/cpu/lib/build_info.json").read_text())["isas"]
    run = [each for each in targets.TARGETS if each.has_model and each.like in native.available_isas()]
    models = [f"{each.name}_model" for each in run if each.name in built]
    assert native.tested_isas() == [*native.available_isas(), *models]
    for name in models:
        native.set_isa(name)
        assert native.isa() == name
    native.set_isa(native.available_isas()[0])
    assert native.isa() == native.available_isas()[0]


def lse_on(native, isa, dtype):
    native.set_isa(isa)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 70, 2, 64), np.float32).astype(dtype) for _ in range(3))
    with fk.use_backend("cpu"):
        return fk.flash_attention(q, k, v, return_lse=True)[1].tobytes()


def test_tiles_multiply_bfloat16_and_hand_on_the_rest(native):
    """They add even and odd members apart, so the last bits of their sums are not those of vector registers."""
    tiles = [name for name in native.tested_isas() if name in ("amx", "amx_model")]
    if not tiles:
        pytest.skip("the model needs AVX-512")
    for dtype, is_handed_on in ((ml_dtypes.bfloat16, False), (np.float32, True)):
        (found,) = {lse_on(native, name, dtype) for name in tiles}  # the model has the processor's bits
        assert (found == lse_on(native, "avx512", dtype)) is is_handed_on


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    if "amx_model" not in runtime.native().tested_isas():
        pytest.skip("the model needs AVX-512")
    program = tmp_path_factory.mktemp("tiles") / "model"
    flags = [*targets.flags(targets.named("amx")), "-DFUSIONKIT_ISA=amx"]
    compile_here(*flags, "-O2", PROGRAMS / "model.cc", SOURCE_DIR / "tiles.cc", "-o", program)
    return program


def test_the_model_has_the_bits_of_the_instruction(model):
    done = subprocess.run([model], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    compared = re.findall(r": (\d+) elements, 0 differ from the formula, 0 from the processor", done.stdout)
    assert [int(number) for number in compared] == [76800] * 4
    expected = "compared" if "amx" in runtime.native().available_isas() else "none"
    assert f"tiles of this processor: {expected}" in done.stdout


def test_a_wrong_model_is_seen(model):
    assert subprocess.run([model, "--wrong"], capture_output=True).returncode == 1


@X86
def test_without_permission_the_next_target_runs_and_the_reason_is_told(tmp_path):
    """The build's header as for a processor with tiles, and a request that Linux does not know."""
    header = Variant("native").targets_header()
    row = re.search(r"f\(amx, (.*?) && tiles_permitted\(\)", header)
    assert row
    (tmp_path / "targets.h").write_text(header.replace(row[1], "true", 1))
    source = (ROOT / SOURCE_DIR / "tiles.cc").read_text()
    assert "kTileData = 18" in source
    (tmp_path / "tiles.cc").write_text(source.replace("kTileData = 18", "kTileData = 63"))
    program = tmp_path / "refused"
    dispatch = f'-DFUSIONKIT_TARGETS="{tmp_path}/targets.h"'
    sources = [PROGRAMS / "refused.cc", SOURCE_DIR / "isa.cc", tmp_path / "tiles.cc"]
    compile_here(dispatch, *sources, "-o", program)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    first, second = told.splitlines()
    names, chosen, reason = first.split("| ")
    assert "amx" not in names and chosen == f"runs {names.split()[0]} "
    assert reason.startswith("Linux does not permit tiles: ")
    assert second.startswith("set_isa: name must be one of ") and second.endswith(f'got "amx". {reason}')
