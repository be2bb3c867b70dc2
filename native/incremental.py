"""Compiles and links only what changed, in parallel, with one printed line a step.

A file is made again when its command, or the content of what it is made from, differs from the last time: the source
and the headers that it includes, or the objects of a library. Dates make no difference, so a branch that is entered
again compiles nothing. Neither does the folder of installed packages: pip makes a new one for each isolated build.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILD_DIR = Path("build")


class BuildError(Exception):
    """The native code could not be built; the text says what to do."""


@dataclass(frozen=True)
class CompileStep:
    """One source, compiled into `folder`; `isa` keeps the objects of several instruction sets apart."""

    compiler: tuple[str, ...]
    source: Path
    flags: tuple[str, ...]
    folder: Path
    isa: str = ""

    @property
    def name(self) -> str:
        return f"{self.source} for {self.isa}" if self.isa else str(self.source)

    @property
    def object(self) -> Path:
        return self.folder / self.source.parent / self.isa / f"{self.source.stem}.o"

    @property
    def depfile(self) -> Path:
        return self.object.with_suffix(".d")

    @property
    def record(self) -> Path:
        """Where is kept what made the object."""
        return self.object.with_suffix(".cmd")

    def command(self, output: Path) -> list[str]:
        return [
            *self.compiler,
            *self.flags,
            "-MMD",
            "-MF",
            str(self.depfile),
            "-c",
            str(self.source),
            "-o",
            str(output),
        ]

    def inputs(self) -> list[Path]:
        """The source and the project's headers that the last compilation read."""
        if not self.depfile.exists():
            return [self.source]
        return [Path(name) for name in shlex.split(self.depfile.read_text().replace("\\\n", " ").partition(":")[2])]


def compiler() -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get("CXX", "g++")))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def by_path(name: str, path: str) -> Any:
    """A module of a package that may not be installed yet. `path` is from the repository's root."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def num_jobs() -> int:
    return int(by_path("cores", "fusionkit/cores.py").for_processes().number)


def compile_all(steps: list[CompileStep]) -> int:
    """Compiles what is not current and returns how many that were; every failure is shown before it raises."""
    todo = [
        step for step in steps if not is_current(step.object, step.record, step.command(step.object), step.inputs())
    ]
    announce(len(todo))
    failures = []
    with ThreadPoolExecutor(num_jobs()) as pool:
        for number, (step, seconds, result) in enumerate(pool.map(compile_one, todo), 1):
            print(f"fusionkit: [{number}/{len(todo)}] compile {step.name} ({seconds:.1f} s)", flush=True)
            print(result.stdout + result.stderr, end="", flush=True)
            failures += [step.name] if result.returncode else []
    if failures:
        raise BuildError(f"these sources do not compile: {', '.join(failures)}. The compiler's messages are above")
    return len(todo)


MANY = 20  # files that take longer than a person waits without a word: half a minute on two cores


def announce(num_files: int) -> None:
    """pip hides what a build prints, so one line goes to the terminal itself."""
    if num_files < MANY or sys.stdout.isatty():
        return
    with suppress(OSError), open("/dev/tty", "w") as terminal:
        terminal.write(f"\nfusionkit: compiling {num_files} files, some minutes; `pip install -v` shows each\n")


def compile_one(step: CompileStep) -> tuple[CompileStep, float, subprocess.CompletedProcess[str]]:
    step.object.parent.mkdir(parents=True, exist_ok=True)
    start_ns = time.time_ns()
    partial = step.object.with_suffix(".partial.o")
    result = subprocess.run(step.command(partial), capture_output=True, text=True)
    if result.returncode == 0:
        partial.replace(step.object)
        was_edited = any(path.stat().st_mtime_ns > start_ns for path in step.inputs())
        made_from = "" if was_edited else what_makes(step.command(step.object), step.inputs())
        step.record.write_text(made_from)
    return step, (time.time_ns() - start_ns) / 1e9, result


def link_library(output: Path, steps: list[CompileStep], flags: list[str]) -> int:
    return link(output, steps, ["-shared", f"-Wl,-soname,{output.name}", *flags])


def link(output: Path, steps: list[CompileStep], flags: list[str]) -> int:
    """Links a file; 1 when it did, 0 when there was nothing to do. Running processes keep the old file."""
    objects = [step.object for step in steps]
    if not steps:
        return 0
    # Never beside a library, where a wheel would pick it up.
    record = steps[0].folder / f"{output.name}.cmd"
    command = [*steps[0].compiler, *map(str, objects), *flags, "-o"]
    if is_current(output, record, [*command, str(output)], objects):
        return 0
    print(f"fusionkit: link {output.name}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    result = subprocess.run([*command, str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"{output.name} could not be linked:\n{result.stderr}")
    partial.replace(output)
    record.write_text(what_makes([*command, str(output)], objects))
    return 1


def is_current(output: Path, record: Path, command: list[str], inputs: list[Path]) -> bool:
    return all(path.exists() for path in (output, record, *inputs)) and record.read_text() == what_makes(
        command, inputs
    )


def what_makes(command: list[str], inputs: list[Path]) -> str:
    """The command, and a digest of each file that it reads."""
    digests = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" for path in inputs)
    return without_site_packages("\n".join([shlex.join(command), *digests]))


def without_site_packages(text: str) -> str:
    """With what is installed, but not where: versions are definitions in the command."""
    return re.sub(r"/[^\s=]*?/lib(?:64)?/(python3\.\d+)/(?:site|dist)-packages/", r"\1/", text)
