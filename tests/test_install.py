"""Every way of installing ends in a fusionkit that runs, imported from another folder.

The builds happen in one temporary copy of the tree. It starts with the object files of the tree, which the build takes
only where command, source and headers are unchanged.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from native import build
from native.incremental import CompileStep, compile_all, compiler

pytestmark = pytest.mark.xdist_group("install")

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = (
    "*.partial.o .git .venv* .*_cache .hypothesis __pycache__ *.egg-info *.so lib lib.* bdist.* dist output"
    " address arm64 thread".split()  # the last three of build/, for tests
)
PROBE = """
import json, sys
import numpy as np
import fusionkit, fusionkit_backends.cpu

if sys.argv[1] == "paddle":
    import paddle
    to_tensor, to_numpy = paddle.to_tensor, lambda tensor: tensor.numpy()
else:
    to_tensor = to_numpy = lambda array: array
x = np.linspace(-3, 3, 4 * 33, dtype=np.float32).reshape(4, 33)
weight = np.linspace(0.5, 1.5, 33, dtype=np.float32)
arguments = to_tensor(x), to_tensor(weight)
y = to_numpy(fusionkit.fusion_rms_norm(*arguments, epsilon=1e-5))
expected = x / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + 1e-5) * weight
print(json.dumps({
    "core": fusionkit.__file__,
    "backend": fusionkit_backends.cpu.__file__,
    "chosen": fusionkit.fusion_rms_norm.explain(*arguments, epsilon=1e-5).chosen,
    "error_in_epsilons": float(np.max(np.abs(y - expected) / np.abs(expected)) / np.finfo(np.float32).eps),
    "paddle_imported": "paddle" in sys.modules,
}))
"""
REFUSAL_PROBE = """
import json
import fusionkit, paddle

explanation = fusionkit.fusion_rms_norm.explain(paddle.ones([2, 8]), paddle.ones([8]))
maps = open("/proc/self/maps").read()
print(json.dumps([explanation.chosen, str(explanation), "libfusionkit" in maps]))
"""


def run(*command, cwd, **variables):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FUSIONKIT_", "PYTHON"))}
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=env | variables, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def pip_install(python, *arguments, **variables):
    command = [sys.executable, "-m", "pip", "--python", python, "install", *arguments]
    return run(*command, cwd=python.parent, **variables)


def edit(source):
    """Other content, the same program."""
    source.write_text(source.read_text() + "\n")


def new_environment(folder, borrow_packages):
    """A venv; `borrow_packages` lets it see the packages of this one, so that nothing is downloaded."""
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    if borrow_packages:
        site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
        Path(site_packages, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def check_that_it_runs(python, folder, framework, installed_in, **variables):
    seen = json.loads(run(python, "-c", PROBE, framework, cwd=folder, **variables).splitlines()[-1])
    assert Path(seen["core"]).is_relative_to(installed_in)
    assert Path(seen["backend"]).is_relative_to(installed_in)
    assert seen["chosen"] == "cpu"
    assert seen["paddle_imported"] == (framework == "paddle")
    # At most 12 roundings in the mean of 33 squares (4 lanes), halved by the root, then 5: 11 of half an epsilon.
    assert seen["error_in_epsilons"] < 5.5


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return Path(
        shutil.copytree(
            ROOT,
            tmp_path_factory.mktemp("tree") / "fusionkit",
            ignore=shutil.ignore_patterns(*NOT_COPIED),
            symlinks=True,
        )
    )


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """As `make wheel` builds it."""
    printed = run(sys.executable, "-m", "native.wheel", tmp_path_factory.mktemp("wheel"), cwd=tree)
    return Path(printed.splitlines()[-1])


@pytest.mark.parametrize("framework", ["numpy", "paddle"])
def test_wheel_installed_where_there_is_no_compiler_runs(wheel, tmp_path, framework):
    python = new_environment(tmp_path / "environment", borrow_packages=True)
    programs = {"PATH": str(python.parent), "CXX": "", "CC": ""}  # no other is found
    pip_install(python, "--no-deps", "--ignore-installed", wheel, **programs)
    check_that_it_runs(python, tmp_path, framework, installed_in=tmp_path / "environment", **programs)
    assert "fusion_rms_norm" in run(python.parent / "fusionkit", "ops", cwd=tmp_path, **programs)


def test_wheel_names_the_oldest_glibc_and_holds_no_library_of_paddle(wheel):
    assert re.search(r"-manylinux_2_\d+_(x86_64|aarch64)\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        libraries = {Path(name).name.partition(".")[0] for name in file.namelist() if ".so" in Path(name).suffixes}
        recorded = file.read(next(name for name in file.namelist() if name.endswith("/WHEEL"))).decode()
    built = {f"libfusionkit_{name}" for name in ("cpu", "paddle", "parallel", "emulator")}
    assert libraries == built | {"_native"}
    assert f"Tag: {wheel.stem.partition('-')[2].partition('-')[2]}" in recorded


def test_wheel_holds_nothing_of_an_earlier_one(tree, wheel):
    """Packages that were moved or removed stay in setuptools' folder, and would be packed again."""
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if name.endswith(".py")}
    folders = {"bench": "fusionkit_bench", "planner": "fusionkit_planner", "emulator": "fusionkit_emulator"}
    folders |= {"backends": "fusionkit_backends", "fusionkit": "fusionkit"}
    there = {str(path.relative_to(tree)) for folder in folders for path in (tree / folder).rglob("*.py")}
    there = {re.sub(r"^\w+", lambda match: folders[match[0]], name) for name in there}
    assert packed - there == {"fusionkit_command.py"}


def test_a_first_build_has_one_instruction_set_and_a_whole_one_stays_whole(tree, tmp_path):
    def built(extent):
        code = f"""
from pathlib import Path
from native import build
build.build(Path({str(tmp_path)!r})), build.build_emulator(Path({str(tmp_path / "emulator")!r}))
build.build_parallel(Path({str(tmp_path / "parallel")!r}))
"""
        run(sys.executable, "-c", code, cwd=tree, NATIVE_BUILD=extent)
        return with_native("print(*_native.available_isas())").split()

    def with_native(code):
        openmp = "import ctypes; ctypes.CDLL('libgomp.so.1', ctypes.RTLD_GLOBAL)"
        return run(sys.executable, "-c", f"{openmp}; import _native\n{code}", cwd=tmp_path)

    best, *kernels_from = built("first")
    assert kernels_from == [target.name for target in build.targets.needed(build.targets.named(best))][1:]
    told = with_native("try: _native.set_isa('portable')\nexcept ValueError as error: print(error)")
    assert best == "portable" or told.endswith(
        f"must be one of {', '.join([best, *kernels_from])} (what `make demo` has built),"
        ' got "portable". Run: make build\n'
    )
    others = [tmp_path / "emulator/lib", tmp_path / "parallel/lib"]
    assert not [folder for folder in others if folder.exists()]
    *_, last = whole = built("whole")
    assert whole[0] == best and last == "portable" and all(folder.exists() for folder in others)
    assert built("first") == whole


def test_kernels_are_compiled_before_any_package_is_there(tree, tmp_path):
    """As make does while it downloads them; what is compiled then is not compiled again."""
    bare = new_environment(tmp_path / "environment", borrow_packages=False)
    edit(tree / "backends/cpu/csrc/rows.cc")
    assert "compile backends/cpu/csrc/rows.cc" in run(bare, "-m", "native.build", "kernels", cwd=tree)
    code = "from native.build import Variant; from native.incremental import compile_all"
    code += "; print(compile_all(Variant('native').kernel_library()))"
    assert run(sys.executable, "-c", code, cwd=tree) == "0\n"


def test_the_best_instruction_set_is_what_a_processor_lists():
    avx2, avx512, amx = "fma avx2 f16c", "avx512f avx512bw avx512vl avx512dq avx512_bf16", "amx_bf16 amx_tile amx_int8"
    processors = {
        "amx": f"{avx2} {avx512} {amx}",
        "avx512": f"{avx2} {avx512} amx_tile",
        "avx2": f"{avx2} avx512f {amx}",
        "portable": "fma avx2",
    }
    for best, listed in processors.items():
        assert build.best_isa("x86_64", f"processor\t: 0\nflags\t\t: sse2 {listed}\nbugs\t\t: avx2\n") == best
    assert build.best_isa("aarch64", "Features\t: asimd\n") == "portable"


def test_library_built_for_another_paddle_is_refused_before_it_is_loaded(wheel, tmp_path):
    python = new_environment(tmp_path / "environment", borrow_packages=True)
    pip_install(python, "--no-deps", "--ignore-installed", wheel)
    (info_path,) = (tmp_path / "environment").glob("lib/*/site-packages/fusionkit_backends/cpu/lib/build_info.json")
    info = json.loads(info_path.read_text())
    info_path.write_text(json.dumps(info | {"paddle_version": "2.6.2"}))

    chosen, explanation, loaded = json.loads(run(python, "-c", REFUSAL_PROBE, cwd=tmp_path).splitlines()[-1])
    assert chosen == "eager"
    assert "built for Paddle 2.6.2" in explanation
    assert f"installed is Paddle {info['paddle_version']}" in explanation
    assert not loaded


def test_editable_install_runs_from_the_tree(tree, wheel, tmp_path):
    python = new_environment(tmp_path / "environment", borrow_packages=True)
    pip_install(python, "--no-build-isolation", "--no-deps", "--ignore-installed", "--editable", tree)
    check_that_it_runs(python, tmp_path, "paddle", installed_in=tree)


def test_second_build_compiles_only_what_changed(tree, wheel):
    def build():
        return run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=tree)

    build()
    assert build() == "fusionkit: native code is up to date\n"
    kernel = min((tree / "backends/cpu/csrc/kernels").glob("*.cc"), key=lambda path: path.stat().st_size)
    kernel.touch()
    assert build() == "fusionkit: native code is up to date\n"
    edit(kernel)
    assert set(re.findall(r"compile (\S+)", build())) == {str(kernel.relative_to(tree))}


def test_packages_in_another_folder_compile_nothing_again(tmp_path):
    """As pip's isolated builds have them; another version is another definition in the command."""
    source, header = tmp_path / "bead.cc", tmp_path / "more.h"
    source.write_text('#include <bead.h>\n#include "more.h"\nint beads = BEADS + MORE;\n')
    header.write_text("#define MORE 0\n")

    def compiled(environment, *flags):
        include = tmp_path / environment / "lib/python3.11/site-packages/bead/include"
        include.mkdir(parents=True, exist_ok=True)
        (include / "bead.h").write_text("#define BEADS 7\n")
        step = CompileStep(compiler(), source, ("-isystem", str(include), *flags), tmp_path / "objects")
        return compile_all([step])

    assert compiled("one") == 1
    assert compiled("two") == 0
    assert compiled("two", "-DBEAD_VERSION=2") == 1
    for edited in (source, header):
        edit(edited)
        assert compiled("two", "-DBEAD_VERSION=2") == 1
        edited.touch()
        assert compiled("two", "-DBEAD_VERSION=2") == 0


def test_kernel_objects_define_no_weak_symbol(tree, wheel):
    """The linker keeps one copy of a weak symbol: AVX-512 code could then run on a processor without it."""
    objects = sorted((tree / "build/native/backends/cpu/csrc/kernels").glob("*/*.o"))
    assert objects
    for path in objects:
        weak = [
            line
            for line in run("nm", "--demangle", path, cwd=tree).splitlines()
            if re.search(r" [VWu] (?!DW.ref.__gxx_personality)", line)
        ]
        assert not weak, f"{path.relative_to(tree)}: {weak}"


def test_kernel_library_brings_no_openmp_runtime(tree, wheel):
    folder = next((tree / "build").glob("lib.*/fusionkit_backends/cpu/lib"))
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "--dynamic", folder / "libfusionkit_cpu.so", cwd=tree))
    assert needed and not [name for name in needed if "omp" in name]


def test_build_without_a_compiler_says_what_to_install(tree):
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        cwd=tree,
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "no-such-compiler was not found. Install it: apt-get install g++" in result.stderr


def test_source_distribution_holds_what_a_build_reads(tree, tmp_path):
    run(
        sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})", cwd=tree
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    native = {str(path.relative_to(tree)) for path in tree.glob("**/csrc/**/*") if path.suffix in (".cc", ".h")}
    build = {str(path.relative_to(tree)) for path in tree.glob("native/*.py")}
    assert build and native | build | {"setup.py", "pyproject.toml", "requirements/run.txt", "LICENSE"} <= names


def test_build_requirements_are_the_same_for_pip_and_make():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["build-system"]["requires"] == (ROOT / "requirements/build.txt").read_text().split()


def test_every_requirement_is_explained_with_its_version():
    rows = (ROOT / "docs/dependencies.md").read_text().splitlines()
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for requirement in path.read_text().split() if path.name != "constraints.txt" else []:
            name, operator, version = re.fullmatch(r"([\w-]+)(==|>=)(\S+)", requirement).groups()
            cell = version if operator == "==" else f">= {version}"
            assert any(row.startswith(f"| {name} | {cell} |") for row in rows), f"{path.name}: {requirement}"


def test_the_readmes_commands_install_what_runs(tree, wheel):
    """As written, but in a copy of the tree: in an environment of its own, with packages from where pip takes them."""
    page = (ROOT / "README.md").read_text()
    commands = re.search(r"<!-- run by: tests/test_install.py[^\n]*\n\n((?: {4}.*\n)+)", page)[1]
    assert "pip install -v '.[paddle]'" in commands
    guide = (ROOT / "docs/install/cpu.md").read_text()
    assert re.sub(r"\s*&&\s*|\n\s*", "\n", commands.strip()) in guide
    shown = run("bash", "-ec", commands, cwd=tree)
    shutil.rmtree(tree / "env")
    assert "fusionkit: [" not in shown, "compiled again"
    assert "Everything is well." in shown


def test_pip_install_with_build_isolation_compiles_nothing_again_and_runs_without_paddle(tree, wheel, tmp_path):
    """The build environment has the packages of the build before, in another folder."""
    python = new_environment(tmp_path / "environment", borrow_packages=False)
    shown = pip_install(python, "--verbose", tree)
    assert "Successfully installed" in shown and "fusionkit: [" not in shown, re.findall("fusionkit: .*", shown)
    check_that_it_runs(python, tmp_path, "numpy", installed_in=tmp_path / "environment")
