"""Starts a training command again when it fails, so that it goes on from its last whole checkpoint.

    python -m examples.llama2_13b.supervise --max_restarts 3 -- COMMAND --resume_from_checkpoint auto

COMMAND is a training command, also under `paddle.distributed.launch`. docs/training.md says why that launcher's own
restarts do not serve.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.io.flags import flag, main, words
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.io.signals import SIGNALS
from examples.llama2_13b.io.text import ENCODING

PROGRAM = "examples.llama2_13b.supervise"
STOPPED = {128 + number for number in SIGNALS}  # a run that was asked to stop, and has saved


@dataclass(frozen=True)
class SuperviseFlags:
    """What is started, and how often."""

    command: tuple[str, ...] = words("the training command, after --")
    max_restarts: int = flag("times that it is started again", 3)

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"supervise: --max_restarts must be at least 0, got {self.max_restarts}")
        if not self.command:
            raise ValueError("supervise: a training command must be given after --, got none")
        if not _resumes(self.command):
            rule = "a training command with --resume_from_checkpoint auto"
            raise ValueError(f"supervise: what follows -- must be {rule}, got {' '.join(self.command)}")


def supervise(flags: SuperviseFlags) -> int:
    """Run the command until it ends well, is asked to stop, or has failed once more than it may; its last status."""
    with _Forwarding() as signals:
        for left in range(flags.max_restarts, -1, -1):
            process = subprocess.Popen(flags.command, start_new_session=True)  # it gets signals from here alone
            with signals.going_to(process):
                status = process.wait()
            if status == 0 or status in STOPPED or signals.have_come:
                break
            what = f"supervise: the command ended with status {status}"
            again = f"started again, {left - 1} more times if need be" if left else "not started again"
            say(f"{what}; {again}", sys.stderr)
    return status if status >= 0 else 128 - status


class _Forwarding:
    """Inside the block signals go to the command. One that comes while no command is there, to the next."""

    def __init__(self) -> None:
        self.have_come = False
        self._waiting: deque[int] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarding:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._forward) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def going_to(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        self._process = process
        self._send()
        try:
            yield
        finally:
            self._process = None

    def _forward(self, number: int, frame: object) -> None:
        self.have_come = True
        self._waiting.append(number)
        self._send()

    def _send(self) -> None:
        """Each once, also where another comes between two lines here."""
        while self._process is not None:
            try:
                number = self._waiting.popleft()
            except IndexError:
                return
            self._process.send_signal(number)


def _resumes(command: tuple[str, ...]) -> bool:
    """Whether the flag is among the words, or in a file of flags."""
    name = "resume_from_checkpoint"
    given = [word.split("=", 1)[1] for word in command if word.startswith(f"--{name}=")]
    given += [value for word, value in zip(command, command[1:], strict=False) if word == f"--{name}"]
    for word in command:
        if not given and word.endswith(".json") and Path(word).is_file():
            with contextlib.suppress(ValueError, AttributeError):  # the command itself refuses what is no flags
                given = [json.loads(Path(word).read_text(encoding=ENCODING)).get(name)]
    return given[-1:] == ["auto"]


if __name__ == "__main__":
    main(SuperviseFlags, supervise, PROGRAM)
