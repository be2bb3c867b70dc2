"""What the native code is built from. setup.py calls `build` (the CPU backend), `build_parallel` and `build_emulator`.

lib/libfusionkit_cpu.so      csrc/*.cc once, csrc/kernels/*.cc once per target of backends/cpu/targets.py; no framework,
                             no libgomp
_native                      csrc/python/*.cc: the pybind11 module for NumPy
lib/libfusionkit_paddle.so   csrc/paddle/*.cc: Paddle's custom ops, for the Paddle found in this environment
lib/build_info.json          the Paddle version, compiler and flags of the above

lib/libfusionkit_parallel.so fusionkit/parallel/csrc/*.cc: the communicator; no framework, no libgomp

lib/libfusionkit_emulator.so emulator/csrc/**/*.cc and the communicator: a plugin for the Paddle of this environment
build_info.json              as above; not in lib, where Paddle looks for plugins

NATIVE_BUILD=first, which `make demo` sets, compiles what a first result needs: the kernels for this processor's
instruction set alone, no communicator and no emulator. Where a whole build is already, it stays whole.

`python -m native.build kernels` compiles the kernels with nothing but Python and the compiler: the Makefile runs it
while the packages are downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from native.incremental import BUILD_DIR, BuildError, CompileStep, by_path, compile_all, compiler, link_library, locked

SOURCE_DIR = Path("backends/cpu/csrc")
PARALLEL_SOURCE_DIR = Path("fusionkit/parallel/csrc")
EMULATOR_SOURCE_DIR = Path("emulator/csrc")
# Never -ffast-math: infinities and NaN carry meaning in masks. Paddle's wheel uses the C++11 ABI of libstdc++.
FLAGS = tuple(
    "-std=c++17 -O3 -fopenmp -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno"
    " -Wall -Wextra -D_GLIBCXX_USE_CXX11_ABI=1".split()
)
targets = by_path("fusionkit_targets", "backends/cpu/targets.py")


@dataclass(frozen=True)
class Variant:
    """One way to compile the sources; its objects are in a folder of its own."""

    name: str
    flags: tuple[str, ...] = FLAGS
    compiler: tuple[str, ...] = field(default_factory=compiler)
    machine: str = platform.machine()
    only_isa: str | None = None

    @property
    def folder(self) -> Path:
        return BUILD_DIR / self.name

    @property
    def targets(self) -> list[Any]:
        """Those that are compiled, the best first."""
        return targets.needed(targets.named(self.only_isa)) if self.only_isa else targets.of_machine(self.machine)

    @property
    def isas(self) -> list[str]:
        return [target.name for target in self.targets]

    def steps(self, sources: Iterable[Path], flags: Iterable[str] = (), isa: str = "") -> list[CompileStep]:
        all_flags = (*self.flags, *flags, f"-I{SOURCE_DIR}")
        return [CompileStep(self.compiler, source, all_flags, self.folder, isa) for source in sorted(sources)]

    def kernel_library(self) -> list[CompileStep]:
        only = f"only_{self.only_isa}" if self.only_isa else ""
        header = self.folder / only / "targets.h"
        write_if_changed(header, self.targets_header())
        dispatch = [f'-DFUSIONKIT_TARGETS="{header}"', "-I."]
        library = self.steps(SOURCE_DIR.glob("*.cc"), dispatch, only)
        for target in self.targets:
            # What takes kernels of another target has to see that one's too.
            flags = [*targets.flags(target), f"-DFUSIONKIT_ISA={target.name}"]
            flags += [f"-DFUSIONKIT_LIKE={target.like}", *dispatch] if target.kernels else []
            library += self.steps(kernel_files(target), flags, target.name)
        return library

    def targets_header(self) -> str:
        """The C++ side of the table; see kernels/table.h. A new kernel changes it only if a part compiles it."""
        whole = [target for target in self.targets if target.kernels is None]
        parts = [target for target in self.targets if target.kernels is not None]
        every = targets.of_machine(self.machine)
        return "\n".join(
            [
                "// Written by native/build.py from backends/cpu/targets.py.",
                "#pragma once",
                f"namespace fusionkit_cpu {{\nenum class Isa {{ {', '.join(target.name for target in every)} }};",
                *(f"namespace {target.name} {{}}" for target in whole),
                *(f"namespace {target.name} {{ using namespace {target.like}; }}" for target in parts),
                "}  // namespace fusionkit_cpu",
                f"#define FUSIONKIT_EACH_TARGET(f) {' '.join(map(self.row, every))}",
                f"#define FUSIONKIT_IN_WHOLE_TARGETS(...) {' '.join(declared(target) for target in whole)}",
                f"#define FUSIONKIT_IN_PARTS(unit, ...) {' '.join(declared_if_compiled(target) for target in parts)}",
                *(line for target in parts for line in compiled(target)),
                f"#define FUSIONKIT_DISPATCH(function, ...) {dispatch(self.isas)}\n",
            ]
        )

    def row(self, target: Any) -> str:
        """f(name, whether the processor runs it, whether it runs its model, whether it is built)."""
        runs = supported(target) + (f" && {target.permission}()" if target.permission else "")
        model = supported(targets.named(target.like)) if target.has_model else "false"
        return f"f({target.name}, {runs}, {model}, {'true' if target.name in self.isas else 'false'})"

    def python_module(self) -> list[CompileStep]:
        """One unit: pybind11 alone takes as long to compile, in each unit, as all of these sources."""
        unit = self.folder / "python.cc"
        write_if_changed(unit, "".join(f'#include "{path}"\n' for path in sorted(SOURCE_DIR.glob("python/*.cc"))))
        return self.steps([unit], ["-I.", *python_flags()])


def kernel_files(target: Any) -> list[Path]:
    if target.kernels is None:
        return list(SOURCE_DIR.glob("kernels/*.cc"))
    return [SOURCE_DIR / f"kernels/{name}.cc" for name in target.kernels]


def declared(target: Any) -> str:
    return f"namespace {target.name} {{ __VA_ARGS__ }}"


def declared_if_compiled(target: Any) -> str:
    return f"FUSIONKIT_IF(FUSIONKIT_{target.name}_COMPILES_##unit)(__VA_ARGS__)"


def compiled(target: Any) -> list[str]:
    """What FUSIONKIT_IF asks for; see kernels/table.h."""
    declare = f"FUSIONKIT_DECLARE_IN_{target.name}"
    marks = [f"#define FUSIONKIT_{target.name}_COMPILES_{name} , {declare}" for name in target.kernels]
    return [f"#define {declare}(...) {declared(target)}", *marks]


def supported(target: Any) -> str:
    return " && ".join(f'__builtin_cpu_supports("{feature}")' for feature in targets.features(target)) or "true"


def dispatch(isas: list[str]) -> str:
    """A call of the function of the target in use; the last one needs no question."""
    calls = [f"::fusionkit_cpu::{isa}::function(__VA_ARGS__);" for isa in isas]
    cases = [f"case ::fusionkit_cpu::Isa::{isa}: return {call}" for isa, call in zip(isas[:-1], calls, strict=False)]
    return f"([&] {{ switch (::fusionkit_cpu::current_isa()) {{ {' '.join(cases)} default: return {calls[-1]} }} }}())"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def build(package_dir: Path) -> None:
    """Brings the native files of fusionkit_backends.cpu in `package_dir` up to date."""
    check_toolchain()
    with locked(Variant("native").folder):
        build_locked(package_dir, wanted_variant(package_dir))


def build_kernels(package_dir: Path) -> None:
    """What `build` compiles and needs no package."""
    check_toolchain()
    with locked(Variant("native").folder):
        variant = wanted_variant(package_dir)
        if variant.only_isa:
            print(f"fusionkit: a first build, for this processor's {variant.only_isa} alone", flush=True)
        compile_all(variant.kernel_library())


def wanted_variant(package_dir: Path) -> Variant:
    variant = Variant("native")
    if not is_first() or is_whole(package_dir / "lib/build_info.json", variant):
        return variant
    return Variant("native", only_isa=best_isa(variant.machine, Path("/proc/cpuinfo").read_text()))


def is_left_out(name: str, output: Path) -> bool:
    """A first build leaves out what only other targets need."""
    if not is_first() or output.exists():
        return False
    print(f"fusionkit: a first build, without the {name}", flush=True)
    return True


def is_first() -> bool:
    wanted = os.environ.get("NATIVE_BUILD", "whole")
    if wanted not in ("first", "whole"):
        raise BuildError(f"NATIVE_BUILD must be first or whole, got {wanted!r}")
    return wanted == "first"


def is_whole(build_info: Path, variant: Variant) -> bool:
    return build_info.exists() and json.loads(build_info.read_text())["isas"] == variant.isas


def best_isa(machine: str, cpuinfo: str) -> str:
    """The first of the targets that a processor has."""
    name: str = targets.best(machine, listed_features(cpuinfo)).name
    return name


def listed_features(cpuinfo: str) -> set[str]:
    listed = re.search(r"^flags\s*:(.*)$", cpuinfo, re.M)
    return set(listed[1].split()) if listed else set()


def build_locked(package_dir: Path, variant: Variant) -> None:
    lib = package_dir / "lib"
    paddle = find_paddle()
    cpu, python = variant.kernel_library(), variant.python_module()
    custom_ops = variant.steps(SOURCE_DIR.glob("paddle/*.cc"), paddle_flags(*paddle)) if paddle else []
    num_done = compile_all(cpu + python + custom_ops)

    num_done += link_for_numpy(package_dir, cpu, python)
    if paddle:
        # No rpath to Paddle: it is imported first, and a build environment's folder is gone by then.
        flags = [f"-L{lib}", "-lfusionkit_cpu", f"-L{paddle[0] / 'base'}", "-Wl,--no-as-needed", "-l:libpaddle.so"]
        num_done += link_library(lib / "libfusionkit_paddle.so", custom_ops, [*flags, "-Wl,-rpath,$ORIGIN"])
    else:
        (lib / "libfusionkit_paddle.so").unlink(missing_ok=True)
        print("fusionkit: no Paddle in this environment, so no custom ops for it are built", flush=True)
    write_build_info(lib / "build_info.json", paddle[1] if paddle and custom_ops else None, variant)
    if not num_done:
        print("fusionkit: native code is up to date", flush=True)


def link_for_numpy(
    folder: Path, kernel_library: list[CompileStep], python: list[CompileStep], flags: Iterable[str] = ()
) -> int:
    lib = folder / "lib"
    use_cpu = [f"-L{lib}", "-lfusionkit_cpu", "-Wl,-rpath,$ORIGIN/lib"]
    num_done = link_library(lib / "libfusionkit_cpu.so", kernel_library, [*flags, "-ldl"])
    return num_done + link_library(folder / native_module(), python, [*flags, *use_cpu])


def native_module() -> str:
    return f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def build_parallel(package_dir: Path) -> None:
    """Brings the communicator of fusionkit.parallel in `package_dir` up to date."""
    check_toolchain()
    variant, output = without_openmp(), package_dir / parallel_outputs()[0]
    with locked(variant.folder):
        if is_left_out("communicator", output):
            return
        library = variant.steps(PARALLEL_SOURCE_DIR.glob("*.cc"))
        compile_all(library)
        link_library(output, library, [])


def without_openmp() -> Variant:
    return Variant("native", tuple(flag for flag in FLAGS if flag != "-fopenmp"))


def parallel_outputs() -> list[str]:
    return ["lib/libfusionkit_parallel.so"]


def build_emulator(package_dir: Path) -> None:
    """Brings the plugin of fusionkit_emulator in `package_dir` up to date; without Paddle there is none."""
    check_toolchain()
    variant, paddle = without_openmp(), find_paddle()
    if not paddle:
        print("fusionkit: no Paddle in this environment, so the emulator is not built", flush=True)
        return
    with locked(variant.folder):
        if is_left_out("emulator", package_dir / emulator_outputs()[0]):
            return
        # Not -DPADDLE_WITH_CUSTOM_KERNEL, as custom ops have: the device's kernels see Paddle's own tensors.
        flags = ["-I.", f"-I{EMULATOR_SOURCE_DIR}", *paddle_includes(paddle[0]), "-DPADDLE_WITH_CUSTOM_DEVICE"]
        flags.append(f'-DFUSIONKIT_PADDLE_VERSION="{paddle[1]}"')
        plugin = variant.steps(EMULATOR_SOURCE_DIR.glob("**/*.cc"), flags)
        communicator = [source for source in PARALLEL_SOURCE_DIR.glob("*.cc") if source.name != "c_api.cc"]
        library = plugin + variant.steps(communicator)
        compile_all(library)
        folders = [f"-L{paddle[0] / 'base'}", f"-L{paddle[0] / 'libs'}"]
        use_paddle = ["-Wl,--no-as-needed", "-l:libpaddle.so", "-lphi_core", "-lphi", "-lcommon"]
        link_library(package_dir / emulator_outputs()[0], library, [*folders, *use_paddle])
        write_build_info(package_dir / emulator_outputs()[1], paddle[1], variant)


def emulator_outputs() -> list[str]:
    return ["lib/libfusionkit_emulator.so", "build_info.json"]


def outputs() -> list[str]:
    """The files that a build may make, relative to the package's folder."""
    return [native_module(), "lib/libfusionkit_cpu.so", "lib/libfusionkit_paddle.so", "lib/build_info.json"]


def check_toolchain() -> None:
    """Raises BuildError, naming the packages to install, when something that the build needs is missing."""
    if sys.platform != "linux":
        raise BuildError(f"fusionkit builds on Linux, not on {sys.platform}")
    if not shutil.which(compiler()[0]):
        raise BuildError(
            f"the C++ compiler {compiler()[0]} was not found. Install it: apt-get install g++ (Debian, Ubuntu),"
            " dnf install gcc-c++ (Fedora, RHEL); or name another one in CXX"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise BuildError(
            f"{header} was not found: the headers of Python {platform.python_version()}. Install them:"
            " apt-get install python3-dev (Debian, Ubuntu), dnf install python3-devel (Fedora, RHEL)"
        )


def find_paddle() -> tuple[Path, str] | None:
    """The folder and version of the installed Paddle. It is not imported: that takes seconds."""
    spec = importlib.util.find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    version = re.search(r"full_version\s*=\s*'([^']+)'", (folder / "version/__init__.py").read_text())
    if version is None:
        raise BuildError(f"{folder}/version/__init__.py must name Paddle's full_version. Install paddlepaddle again")
    return folder, version[1]


def python_flags() -> list[str]:
    import pybind11

    return ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def paddle_flags(folder: Path, version: str) -> list[str]:
    # The version is part of the command, so that another Paddle in the same folder compiles everything again.
    return [*paddle_includes(folder), "-DPADDLE_WITH_CUSTOM_KERNEL", f'-DFUSIONKIT_PADDLE_VERSION="{version}"']


def paddle_includes(folder: Path) -> list[str]:
    # paddle/extension.h includes Python.h through paddle/utils/pybind.h.
    includes = [folder / "include", folder / "include/third_party", sysconfig.get_path("include")]
    return [flag for include in includes for flag in ("-isystem", str(include))]


def write_build_info(path: Path, paddle_version: str | None, variant: Variant) -> None:
    version = subprocess.run([*variant.compiler, "--version"], capture_output=True, text=True, check=True).stdout
    info = {
        "paddle_version": paddle_version,
        "compiler": version.splitlines()[0],
        "flags": shlex.join(variant.flags),
        "isas": variant.isas,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # a build that is ended leaves no half of it
    partial.write_text(json.dumps(info, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    try:
        check_toolchain()
        if sys.argv[1:] == ["kernels"]:
            build_kernels(SOURCE_DIR.parent)
    except BuildError as error:
        sys.exit(f"fusionkit: {error}")
