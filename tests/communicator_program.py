"""The communicator and the checks of tests/native/communicator in one executable."""

from __future__ import annotations

import contextlib
from pathlib import Path

from native.build import PARALLEL_SOURCE_DIR, Variant
from native.incremental import CompileStep, compile_all, link, locked
from tests.kernel_program import ROOT

SOURCES = Path("tests/native/communicator")


def steps(variant: Variant) -> list[CompileStep]:
    library = [source for source in PARALLEL_SOURCE_DIR.glob("*.cc") if source.name != "c_api.cc"]
    return variant.steps(library) + variant.steps(SOURCES.glob("*.cc"), ["-I."])


def build_program(variant: Variant) -> Path:
    with contextlib.chdir(ROOT), locked(variant.folder):
        objects = steps(variant)
        compile_all(objects)
        program = variant.folder / "communicator_tests"
        link(program, objects, [*variant.flags, "-ldl"])
        return program.resolve()
