"""A contestant in a process of its own, and the handle by which the benchmark asks it."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from examples.llama2_13b.bench.decode.contestant import Missing


def fusionkit(folder: Path, num_threads: int, codes: Path | None) -> Any:
    from examples.llama2_13b.bench.decode.fusionkit_engine import FusionkitEngine

    return FusionkitEngine(folder, num_threads, codes)


def llama_cpp(model: Path, num_threads: int) -> Any:
    from examples.llama2_13b.bench.decode.llama_cpp import LlamaCpp

    return LlamaCpp(model, num_threads)


def openvino_genai(model: Path, num_threads: int, most_tokens: int, most_rows: int, cache_gb: int) -> Any:
    from examples.llama2_13b.bench.decode.openvino_genai import OpenVinoGenAI

    return OpenVinoGenAI(model, num_threads, most_tokens, most_rows, cache_gb)


def read_bandwidth(num_bytes: int, num_threads: int) -> Any:
    from examples.llama2_13b.bench.decode.read_bandwidth import ReadBandwidth

    return ReadBandwidth(num_bytes, num_threads)


Make = Callable[[], Any] | partial[Any]


class Worker:
    """Starts the process, which makes the contestant.

    Args:
        name: of the contestant, for errors.
        make: one of this module's functions with its arguments.
        num_threads: of OpenMP's runtimes in the process.

    Raises:
        Missing: the contestant cannot run here.
        RuntimeError: its process ended, or it failed; it is named.
    """

    def __init__(self, name: str, make: Make, num_threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make, num_threads), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: Any = self._receive()

    def ask(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, *arguments))
        return self._receive()

    def peak_memory_gb(self) -> float:
        """Of the process so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e9

    def close(self) -> None:
        """The process has ended when this returns: the next contestant has the machine."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"{self.name}: its process ended with {self._process.exitcode}") from None
        if isinstance(answer, Missing):
            self.close()
            raise answer
        if isinstance(answer, Exception):
            self.close()
            raise RuntimeError(f"{self.name}: {answer}") from answer
        return answer


def serve(connection: Connection, make: Make, num_threads: int) -> None:
    """The process. Ctrl-C is the parent's, which closes the pipe: that ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read by the runtimes when they are loaded
    try:
        contestant = make()
        connection.send(getattr(contestant, "facts", None))
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(contestant, method)(*arguments))
    except (EOFError, OSError) as error:
        if not isinstance(error, EOFError):
            _tell(connection, error)
    except Exception as error:  # the parent raises it
        _tell(connection, error)


def _tell(connection: Connection, error: Exception) -> None:
    try:
        connection.send(error)
    except OSError:  # the parent is gone
        return
