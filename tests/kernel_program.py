"""The ways to compile the native code for tests, and the program of tests/native/kernels.

Each variant has a folder of its own in build/; the ordinary build is never touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from native.build import FLAGS, Variant, link_for_numpy, listed_features, targets
from native.incremental import CompileStep, compile_all, link, locked

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path("tests/native/kernels")

# -O1: the stack of a report names the functions of the source. -g1: their lines, without their variables, which cost a
# sixth of the compilation.
ADDRESS_FLAGS = (
    "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all".split()
)
THREAD_FLAGS = "-O1 -g1 -fsanitize=thread".split()


class Sanitized(Variant):
    """Half of what is compiled would be for processors that this one is not, and a sanitizer sees what runs."""

    @property
    def targets(self) -> list[Any]:
        return targets.testable(self.machine, listed_features(Path("/proc/cpuinfo").read_text()))


NATIVE = Variant("native")
ADDRESS = Sanitized("address", (*FLAGS, *ADDRESS_FLAGS))
THREAD = Sanitized("thread", (*FLAGS, *THREAD_FLAGS, "-DFUSIONKIT_STD_THREADS"))
ARM64 = Variant("arm64", compiler=("aarch64-linux-gnu-g++",), machine="aarch64")


def steps(variant: Variant) -> list[CompileStep]:
    """The checks are no part of what a sanitizer sees: they are compiled once for all of this machine's variants."""
    checks = NATIVE if variant.machine == NATIVE.machine else variant
    return variant.kernel_library() + checks.steps(SOURCES.glob("*.cc"), ["-O2"])


@contextlib.contextmanager
def at_root_alone(*variants: Variant) -> Iterator[None]:
    """In the repository's root, and no other build in the folders of the variants and of the checks."""
    with contextlib.chdir(ROOT), contextlib.ExitStack() as locks:
        for folder in sorted({variant.folder for variant in (*variants, NATIVE)}):  # all in the same order
            locks.enter_context(locked(folder))
        yield


def build_program(variant: Variant) -> Path:
    """The kernel library and its checks in one executable."""
    with at_root_alone(variant):
        objects = steps(variant)
        compile_all(objects)
        program = variant.folder / "kernel_tests"
        link(program, objects, [*variant.flags, "-ldl"])
        return program.resolve()


def build_for_numpy(variant: Variant, flags: list[str]) -> Path:
    """The folder of a `_native` of this variant, beside the ordinary one."""
    with contextlib.chdir(ROOT), locked(variant.folder):
        library, python = variant.kernel_library(), variant.python_module()
        compile_all(library + python)
        link_for_numpy(variant.folder, library, python, flags)
        return variant.folder.resolve()
