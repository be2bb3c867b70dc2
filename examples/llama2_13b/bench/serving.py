"""What it is worth that requests enter a batch while others go on: `python -m examples.llama2_13b.bench.serving`.

A server answers a number of clients for some time. Each sends its next request as soon as it has its answer. Then
others get the same requests in batches: the next batch starts when the slowest answer of the last is there. Of these
one lets a row leave the step when its answer has ended. The other computes it on, as a batch with padding does. What
is computed beyond an answer does not count. All are `examples.llama2_13b.serve` with the same flags, asked over HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

from examples.llama2_13b.io.remarks import say

MODULE = "examples.llama2_13b.serve"
ROOT = Path(__file__).parents[3]
WORDS = "the tea from our garden has a note of smoke and every jar brings ten quiet minutes after rain".split()


@dataclass(frozen=True)
class Asked:
    """A request: words of its prompt, and tokens of its answer, which no end token shortens."""

    prompt: str
    num_tokens: int


@dataclass(frozen=True)
class Answered:
    """
    Args:
        first_s: until the first piece of the answer, in seconds.
        num_tokens: that came; fewer than were asked for if the answer was lost.
        error: why it was lost; "" if it was not.
    """

    first_s: float
    num_tokens: int
    error: str = ""


@dataclass(frozen=True)
class Measured:
    """A run. Blocks are those that nobody gave back at its end. Memory is that of the server's process: at the run's
    beginning, after half of its time, and at its end. What grows for ever grows in the second half, too.
    Processor time is the server's, which other work on the machine changes less than the time that passes.
    """

    requests: int
    tokens: int
    seconds: float
    processor_seconds: float
    first_p50_s: float
    first_p95_s: float
    lost: int
    leaked_blocks: int
    preemptions: int
    memory_start_mb: float
    memory_half_mb: float
    memory_end_mb: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def requests(seed: int, longest_prompt: int, longest_answer: int) -> Iterator[Asked]:
    """Without end. Lengths are spread evenly over their logarithms: as many from 8 to 16 as from 256 to 512."""
    draws = random.Random(seed)
    while True:
        words = round(longest_prompt ** draws.random())
        prompt = " ".join(draws.choice(WORDS) for _ in range(words))
        yield Asked(prompt, round(8 * (longest_answer / 8) ** draws.random()))


def ask(address: tuple[str, int], model: str, asked: Asked) -> Answered:
    """One request, streamed."""
    fields = {"model": model, "prompt": asked.prompt, "max_tokens": asked.num_tokens, "ignore_eos": True, "seed": 1}
    body = json.dumps({**fields, "stream": True, "stream_options": {"include_usage": True}})
    begun, first, last = time.perf_counter(), 0.0, b""
    connection = http.client.HTTPConnection(*address)
    try:
        connection.request("POST", "/v1/completions", body)
        response = connection.getresponse()
        if response.status != 200:
            return Answered(0.0, 0, f"status {response.status}: {response.read()[:200]!r}")
        for line in response:
            first = first or time.perf_counter() - begun
            if b"[DONE]" in line:
                return Answered(first, json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])
            last = line if line.startswith(b"data: ") else last
        return Answered(first, 0, "the stream ended before its answer")
    except OSError as error:
        return Answered(first, 0, str(error))
    finally:
        connection.close()


def closed_loop(
    address: tuple[str, int], model: str, stream: Iterator[Asked], clients: int, seconds: float
) -> list[tuple[Asked, Answered]]:
    """Every client asks again when it is answered, until the time is over; what is under way then ends."""
    lock, end = threading.Lock(), time.perf_counter() + seconds
    done: list[tuple[Asked, Answered]] = []

    def client() -> None:
        while time.perf_counter() < end:
            with lock:
                asked = next(stream)
            answered = ask(address, model, asked)
            with lock:
                done.append((asked, answered))

    in_threads([client] * clients)
    return done


def in_batches(
    address: tuple[str, int], model: str, asked: Sequence[Asked], size: int, is_padded: bool = False
) -> list[tuple[Asked, Answered]]:
    """So many at a time; the next begin when all of these have ended.

    Args:
        is_padded: every row of a batch runs as long as the longest. Only what was asked for counts as an answer.
    """
    done: list[tuple[Asked, Answered]] = []

    def one(each: Asked, longest: int) -> None:
        answered = ask(address, model, replace(each, num_tokens=longest if is_padded else each.num_tokens))
        is_whole = is_padded and answered.num_tokens == longest
        done.append((each, replace(answered, num_tokens=each.num_tokens) if is_whole else answered))

    for start in range(0, len(asked), size):
        batch = asked[start:][:size]
        longest = max(each.num_tokens for each in batch)
        in_threads([partial(one, each, longest) for each in batch])
    return done


def in_threads(functions: Sequence[Any]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Server:
    """A process that serves the model.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        rows, tokens = options.max_rows, options.cache_tokens
        words = ["--model", options.model, "--port", 0, "--max_rows", rows, "--max_queue", 4 * options.clients]
        words += ["--served_model_name", "model", "--request_seconds", 3600.0]
        words += ["--cache_tokens", tokens] if tokens else []
        words += ["--dtype", options.dtype] if options.dtype else []
        command = [sys.executable, "-m", MODULE, *map(str, words)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"served at http://(.*):(\d+)", line):
                self.address = found[1], int(found[2])
                return
        raise RuntimeError("the server did not start; its own message stands above")

    @property
    def processor_seconds(self) -> float:
        """Of all its threads so far. Source: proc(5), fields 14 and 15 of /proc/pid/stat."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000

    def figures(self) -> dict[str, float]:
        connection = http.client.HTTPConnection(*self.address)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return {name: float(value) for name, value in re.findall(r"^fusionkit_engine_(\w+) (\S+)$", text, re.MULTILINE)}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def serving(options: argparse.Namespace) -> Iterator[Server]:
    """A server that has answered once, so that nothing is measured that happens only at the beginning."""
    server = Server(options)
    try:
        stream = requests(options.seed + 1, options.longest_prompt, options.longest_answer)
        in_batches(server.address, "model", list(itertools.islice(stream, options.max_rows)), options.max_rows)
        yield server
    finally:
        server.stop()


def measure(server: Server, run: Any) -> tuple[Measured, list[Asked]]:
    """(what was measured, the requests in the order in which they ended)."""
    begun, worked = time.perf_counter(), server.processor_seconds
    with sampled(lambda: server.memory_mb) as memory:
        done: list[tuple[Asked, Answered]] = run()
    seconds, worked = time.perf_counter() - begun, server.processor_seconds - worked
    figures = server.figures()
    firsts = sorted(answered.first_s for _, answered in done if not answered.error)
    lost = [(asked, answered) for asked, answered in done if answered.num_tokens != asked.num_tokens]
    for _, answered in lost[:3]:
        say(f"lost: {answered}", sys.stderr)
    measured = Measured(
        requests=len(done),
        tokens=sum(answered.num_tokens for _, answered in done),
        seconds=seconds,
        processor_seconds=worked,
        first_p50_s=quantile(firsts, 0.5),
        first_p95_s=quantile(firsts, 0.95),
        lost=len(lost),
        leaked_blocks=round(figures["total_blocks"] - figures["free_blocks"]),
        preemptions=round(figures["preemptions_total"]),
        memory_start_mb=memory[0],
        memory_half_mb=memory[len(memory) // 2],
        memory_end_mb=memory[-1],
    )
    return measured, [asked for asked, _ in done]


@contextlib.contextmanager
def sampled(look: Callable[[], float], seconds: float = 0.5) -> Iterator[list[float]]:
    """What is seen at the beginning, again and again meanwhile, and at the end."""
    seen, is_over = [look()], threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            seen.append(look())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()
        seen.append(look())


def quantile(ascending: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed; NaN of none."""
    return ascending[max(0, -int(-part * len(ascending) // 1) - 1)] if ascending else float("nan")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="what serve takes")
    parser.add_argument("--dtype", help="of a model that is no exported folder")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120, help="in which clients begin requests")
    parser.add_argument("--max_rows", type=int, default=16, help="of the server, and of a batch")
    parser.add_argument("--cache_tokens", type=int, help="of the server")
    parser.add_argument("--longest_prompt", type=int, default=256, help="words")
    parser.add_argument("--longest_answer", type=int, default=256, help="tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="figures go here")
    return parser.parse_args(argv)


def compare(options: argparse.Namespace) -> dict[str, Measured]:
    """Each way with a server of its own: the second would find the first's prompts in the cache."""
    stream = requests(options.seed, options.longest_prompt, options.longest_answer)
    with serving(options) as server:
        dynamic, asked = measure(
            server, lambda: closed_loop(server.address, "model", stream, options.clients, options.seconds)
        )
    order = requests(options.seed, options.longest_prompt, options.longest_answer)
    same = list(itertools.islice(order, len(asked)))  # in the order in which they were sent
    measured = {"dynamic insertion": dynamic}
    for name, is_padded in (("batches", False), ("padded batches", True)):
        with serving(options) as server:
            run = partial(in_batches, server.address, "model", same, options.max_rows, is_padded)
            measured[name], _ = measure(server, run)
    return measured


COLUMNS = (
    "", "requests", "tokens", "tokens/s", "tokens a processor second", "first token p50, p95 (s)", "lost",
    "leaked blocks", "MB at start, half, end",
)  # fmt: skip


def table(measured: dict[str, Measured]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |".replace("|  |", "| |"), "| --- " * len(COLUMNS) + "|"]
    for name, each in measured.items():
        first = f"{each.first_p50_s:.2f}, {each.first_p95_s:.2f}"
        memory = f"{each.memory_start_mb:.0f}, {each.memory_half_mb:.0f}, {each.memory_end_mb:.0f}"
        rates = f"{each.tokens_per_second:.1f} | {each.tokens / each.processor_seconds:.1f}"
        counts = f"{each.requests} | {each.tokens} | {rates}"
        lines.append(f"| {name} | {counts} | {first} | {each.lost} | {each.leaked_blocks} | {memory} |")
    (name, dynamic), *others = ((name, each.tokens_per_second) for name, each in measured.items())
    ratios = [f"{name}: {dynamic / batches:.2f} times the tokens a second of {other}" for other, batches in others]
    return "\n".join([*lines, "", *ratios])


def main() -> int:
    options = arguments()
    measured = compare(options)
    print(table(measured))
    if options.json:
        figures = {
            name: {**asdict(each), "tokens_per_second": each.tokens_per_second} for name, each in measured.items()
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(each.lost or each.leaked_blocks for each in measured.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
