"""What is measured of a training step: model FLOPs, the rate they are compared with, memory; and the log."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import paddle

import fusionkit as fk
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import Table
from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import beside_the_work, say


def model_flops(config: LlamaConfig, table: Table, document_lengths: list[int]) -> float:
    """FLOPs that training on these documents asks for, whatever was computed again.

        (6 N + 4 F) tokens + 6 L heads head_dim sum(length^2)

    N are the trainable parameters without the input embedding (a tied one is the head), each used in a multiplication
    and an addition forward and twice that backward: for the gradients of its input and its own. F are the frozen ones,
    which have none of their own. Attention's two products cost 4 heads head_dim per visible pair forward, three times
    that with the backward pass, for the length^2 / 2 pairs under the causal diagonal in each of L layers. In a layer
    with a shorter sliding window these are length window - window^2 / 2.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with half the pairs.
    """
    used = [parameter for parameter in table.values() if not parameter.is_looked_up]
    a_token = sum(parameter.size * (6.0 if parameter.is_trainable else 4.0) for parameter in used)
    return a_token * sum(document_lengths) + attention_flops(config, document_lengths)


def attention_flops(config: LlamaConfig, document_lengths: list[int]) -> float:
    """The second term of `model_flops`."""
    windows = Counter(config.window_of(layer) for layer in range(config.num_hidden_layers))
    pairs = sum(count * _twice_pairs(document_lengths, window) for window, count in windows.items())
    return 6.0 * config.num_attention_heads * config.head_dim * pairs


def _twice_pairs(document_lengths: list[int], window: int | None) -> int:
    reaches = [length if window is None else min(length, window) for length in document_lengths]
    return sum(reach * (2 * length - reach) for length, reach in zip(document_lengths, reaches, strict=True))


def measure_peak_flops(dtype: str, size: int = 1024, seconds: float = 0.5) -> float:
    """The best rate of `fused_linear` on square matrices, FLOP/s: what MFU calls 100%."""
    x, weight = (paddle.randn([size, size]).cast(dtype) for _ in range(2))
    best = 0.0
    with paddle.no_grad():
        fk.fused_linear(x, weight)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            fk.fused_linear(x, weight)[0, 0].item()  # a device works on after the call returns; reading waits for it
            best = max(best, 2.0 * size**3 / (time.perf_counter() - before))
    return best


def peak_memory() -> int:
    """Bytes: the most that the device has held, or the process where the device is the host."""
    if paddle.get_device() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(paddle.device.max_memory_allocated(paddle.get_device()))  # of the first device if not told


def begin_peak_memory() -> None:
    """Count a device's peak from here on: loading and `measure_peak_flops` are no part of a step."""
    if paddle.get_device() != "cpu":
        paddle.device.reset_max_memory_allocated(paddle.get_device())


class Log:
    """`log.jsonl`: one JSON object a step, in order.

    Args:
        path: of the file.
        step: lines of later steps are dropped: they come from a run that went on after the checkpoint resumed here.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_log(path) if line["step"] <= step] if path.exists() else []
        atomic.write_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(self, line: dict[str, Any]) -> None:
        """On a full disk the line waits for the next."""
        held_up = bool(self._unwritten)
        self._unwritten += (json.dumps(line) + "\n").encode()
        try:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not held_up:
                say(f"{self._file.name}: {error.strerror}; training goes on, its lines wait for room", sys.stderr)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        with beside_the_work(f"{self._file.name} lacks its last lines"), self._file:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every whole line. What a kill or a power cut left of others is passed over."""
    lines: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines
