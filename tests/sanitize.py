"""`make sanitize`: the kernels and the communicator under AddressSanitizer, UndefinedBehaviorSanitizer and
ThreadSanitizer.

Each sanitizer first has to catch mistakes made on purpose; a build that finds nothing there proves nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fusionkit import cores
from native.incremental import compile_all
from tests import communicator_program, kernel_program
from tests.guard_pages import MISTAKES
from tests.kernel_program import ADDRESS, ADDRESS_FLAGS, ROOT, THREAD

# A busy machine makes a program slow, not wrong: what counts is the processor time that it gets.
STILL = 120  # seconds of the clock in which a program that does anything gets some
LIMIT = 1800  # seconds of processor time for one program; the longest takes about 300


def library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def address_environment() -> Mapping[str, str]:
    """libstdc++ comes first too, so that AddressSanitizer finds the real __cxa_throw. Python and NumPy never free some
    memory, so leaks are looked for in the stand-alone program alone; Python's own pools would hide a block's end."""
    return os.environ | {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Ends the program when it gets no processor time any more, or has had too much."""
    arguments = [*map(str, command)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    had = 0.0
    while True:
        try:
            output, errors = process.communicate(timeout=STILL)
            return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
        except subprocess.TimeoutExpired:
            before, had = had, processor_seconds(process.pid)
            if before < had < LIMIT:
                continue
            process.kill()
            output, errors = process.communicate()
            raise SystemExit(
                f"{output[-4000:]}{errors[-4000:]}\n{' '.join(arguments)}: ended after {had:.0f} s of processor time,"
                f" {had - before:.0f} of them in the last {STILL} s; at most {LIMIT} are allowed"
            ) from None


def processor_seconds(pid: int) -> float:
    """User and system time of a process and all its threads, from fields 14 and 15 of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def require_clean(title: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
    start = time.monotonic()
    result = run(*command, env=env)
    print(f"{title} ({time.monotonic() - start:.0f} s)\n{result.stdout}", end="", flush=True)
    if result.returncode != 0:
        raise SystemExit(f"{result.stderr[-8000:]}\n{title}: failed with status {result.returncode}")


def require_caught(report: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
    """The command ends with --plant MISTAKE."""
    result = run(*command, env=env)
    if result.returncode == 0 or report not in result.stderr:
        raise SystemExit(
            f"{result.stdout}{result.stderr}\n{report}: the planted mistake {command[-1]!r} was not caught"
        )
    print(f"{report}: caught, planted as {command[-1]!r}", flush=True)


def side_by_side(*checks: Callable[[], None]) -> None:
    """As many at a time as there are cores, in this order; every failure is shown."""
    failed = []
    with ThreadPoolExecutor(cores.for_processes().number) as pool:
        for each in [pool.submit(check) for check in checks]:
            try:
                each.result()
            except SystemExit as failure:
                failed.append(str(failure))
    if failed:
        sys.exit("\n".join(failed))


def compile_everything() -> None:
    """In one list, so that no core waits for the end of another one. Python's module takes longest, and comes first."""
    with kernel_program.at_root_alone(ADDRESS, THREAD):
        programs = [
            step
            for variant in (ADDRESS, THREAD)
            for program in (kernel_program, communicator_program)
            for step in program.steps(variant)
        ]
        compile_all([*ADDRESS.python_module(), *dict.fromkeys(programs)])


def main() -> None:
    """Ranks of the communicator are threads here, so that ThreadSanitizer sees what one does to another's memory."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # programs share the cores: a thread that waits must sleep
    compile_everything()
    threads = kernel_program.build_program(THREAD)
    addresses = kernel_program.build_program(ADDRESS)
    ranks_threads, ranks_addresses = map(communicator_program.build_program, (THREAD, ADDRESS))
    folder = kernel_program.build_for_numpy(ADDRESS, ADDRESS_FLAGS)
    parity = [sys.executable, "-W", "ignore", "-m", "tests.parity_process", "--native", str(folder)]
    env = address_environment()
    overflow, race = "AddressSanitizer: heap-buffer-overflow", "ThreadSanitizer: data race"
    side_by_side(
        *(partial(require_caught, overflow, *parity, "--plant", mistake, env=env) for mistake in MISTAKES),
        partial(require_caught, "runtime error: load of misaligned address", addresses, "--plant", "undefined"),
        partial(require_caught, race, threads, "--plant", "overlap"),
        partial(require_caught, overflow, ranks_addresses, "--plant", "short_buffer"),
        partial(require_caught, "AddressSanitizer: heap-use-after-free", ranks_addresses, "--plant", "freed_buffer"),
        partial(require_caught, race, ranks_threads, "--plant", "early_read"),
    )
    under_both = "under AddressSanitizer and UndefinedBehaviorSanitizer"
    side_by_side(  # the longest first
        *(
            partial(require_clean, f"Parity cases {under_both}, half {k + 1}", *parity, "--share", f"{k}/2", env=env)
            for k in range(2)
        ),
        # But for the run on one thread, which races with nobody.
        partial(
            require_clean,
            "The kernels' checks under ThreadSanitizer, on threads of the C++ library",
            *(threads, "--edge", "end"),
        ),
        partial(require_clean, f"The kernels' checks {under_both}, leaks included", addresses),
        partial(require_clean, "The communicator under ThreadSanitizer", ranks_threads),
        partial(require_clean, f"The communicator {under_both}, leaks included", ranks_addresses),
    )


if __name__ == "__main__":
    main()
