"""Commands and all that they start. When a block ends, nothing of them is left, in whatever session or namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

MARK = "VERIFIED_RUN"  # each process of a run has it in its environment, with a value of the run's own
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0  # in which the others tell that one has failed
KILL_SECONDS = 300.0  # a killed process needs some processor time to end; 30 s were too few on a starved machine


class Stopped(BaseException):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block the first of SIGNALS raises `Stopped`. Later ones are ignored, so clearing up is not disturbed.

    A signal that was ignored before, as nohup does with SIGHUP, stays ignored.
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Running:
    """Some commands at the same time.

    Args:
        commands: each is a process, and leads a session.
        output: what they print goes there.
        variables: their whole environment, but for the mark.
        waits_for_input: each begins when `go` writes a line to it.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        output: IO[bytes],
        variables: Mapping[str, str],
        folder: Path,
        waits_for_input: bool = False,
    ) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.processes: list[subprocess.Popen[bytes]] = []
        source = subprocess.PIPE if waits_for_input else subprocess.DEVNULL
        try:
            for command in commands:
                self.processes.append(
                    subprocess.Popen(
                        command, env={**variables, name: value}, cwd=folder, stdin=source, stdout=output,
                        stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_goes_first,
                    )
                )  # fmt: skip
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def go(self) -> None:
        """Lets those that wait for a line begin."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.close()

    def wait(self, seconds: float, watch: Callable[[], None]) -> bool:
        """Until all have ended, or some time after one has failed; whether that was within the seconds.

        Args:
            watch: is called again and again meanwhile.
        """
        until = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            watch()
            if self.failed:
                until = min(until, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > until:
                return self.failed
            time.sleep(POLL_SECONDS)
        watch()
        return True

    @property
    def failed(self) -> bool:
        return any(process.poll() not in (None, 0) for process in self.processes)

    def end(self) -> None:
        """Kill whatever is left. There is nothing that a run would have to save.

        Raises:
            OSError: a process does not end.
        """
        until = time.monotonic() + KILL_SECONDS
        while left := marked(self._mark):
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            for process in self.processes:
                process.poll()  # one that has ended is no process any more
            if time.monotonic() > until:
                raise OSError(f"plan train: --verify: processes {left} must end when they are killed, they did not")
            time.sleep(POLL_SECONDS / 10)
        for process in self.processes:
            process.wait()


def marked(mark: str) -> list[int]:
    """Processes that have this in their environment. One that has ended, and was not waited for, has none."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def _goes_first() -> None:
    """Where memory runs out, the kernel ends these processes before others."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
