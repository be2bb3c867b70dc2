"""Where the time of an engine's step goes: `python -m examples.llama2_13b.bench.engine_step --model output/exported`.

Rows answer side by side, after parts of the example's README. Of each part of a step the median over the steps is
shown, and what all others cost beside Paddle's predictor, which computes the model. Ways to choose a token take turns,
and so do numbers of rows. On a machine that does other things too, `OMP_NUM_THREADS=1` and `--processor_time` count the
work instead of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:  # python path/to/this/file, from any folder
    import sys

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate import row
from examples.llama2_13b.generate.device import left_out
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Request, SamplingSettings
from examples.llama2_13b.generate.sampling import next_token
from examples.llama2_13b.generate.static_program import StaticProgram

WAYS = {
    "greedy": SamplingSettings(temperature=0),
    "top_p 0.9": SamplingSettings(temperature=0.8, top_p=0.9),
    "all": SamplingSettings(temperature=0.8),
}
OPS = "the model's ops"
PARTS = (OPS, "inputs and scores", "choice of tokens", "text", "rows and blocks")
WARM_UP = 3  # steps that are not counted
BLOCK_SIZE = 64
TEXT = Path(__file__).parents[1] / "README.md"


class Timed:
    """A function that keeps the time of its calls, in milliseconds, until it is taken."""

    def __init__(self, function: Callable[..., Any], clock: Callable[[], float]) -> None:
        self._function, self._clock, self._spent = function, clock, 0.0

    def __call__(self, *arguments: Any) -> Any:
        begun = self._clock()
        try:
            return self._function(*arguments)
        finally:
            self._spent += 1e3 * (self._clock() - begun)

    def taken(self) -> float:
        spent, self._spent = self._spent, 0.0
        return spent


class Measured:
    """A folder that export wrote, whose steps are measured; without the passes that are named."""

    def __init__(self, folder: Path, clock: Callable[[], float], without_passes: Sequence[str] = ()) -> None:
        self._config = LlamaConfig.from_json(folder / "config.json")
        self._program = StaticProgram(folder, self._config, without_passes)
        self._run = Timed(self._program.program.run, clock)
        self._program.program = dataclasses.replace(self._program.program, run=self._run)
        self._step, self._choose = Timed(self._program, clock), Timed(next_token, clock)
        tokenizer = Tokenizer.from_pretrained(folder)
        self._decode = Timed(tokenizer.decode, clock)
        self._text = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
        self._clock = clock

    def steps(self, rows: int, cached: int, settings: SamplingSettings, count: int) -> list[dict[str, float]]:
        """Milliseconds of each part, step by step, while `rows` requests answer."""
        engine = self._engine(rows, cached, settings, count)
        with mock.patch.object(row, "next_token", self._choose):
            while engine.stats.generated_tokens < rows * WARM_UP:
                engine.step()
            return [self._one(engine) for _ in range(count)]

    def _engine(self, rows: int, cached: int, settings: SamplingSettings, count: int) -> Engine:
        positions = cached + WARM_UP + 2 * count + rows
        cache = KeyValueCache(self._config, self._program.cache_dtype, rows * -(-positions // BLOCK_SIZE), BLOCK_SIZE)
        vocab_size = self._config.vocab_size
        limits = EngineLimits(positions, vocab_size, rows, rows * cached)  # all prompts in one step
        engine = Engine(self._step, cache, self._decode, limits)
        for number in range(rows):
            prompt = self._text[number * cached :][:cached]  # scores after real text: few tokens are likely
            engine.add(Request(str(number), tuple(prompt), dataclasses.replace(settings, seed=number)))
        return engine

    def _one(self, engine: Engine) -> dict[str, float]:
        parts = (self._run, self._step, self._choose, self._decode)
        for part in parts:
            part.taken()
        begun = self._clock()
        engine.step()
        whole = 1e3 * (self._clock() - begun)
        ops, program, choice, text = (part.taken() for part in parts)
        return dict(zip(PARTS, (ops, program - ops, choice, text, whole - program - choice - text), strict=True))


def compared(programs: Mapping[str, Measured], options: argparse.Namespace) -> dict[tuple[str, int], dict[str, float]]:
    """(way and which program, rows) -> the median of each part over the steps of all rounds."""
    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _, way, rows in itertools.product(range(options.rounds), options.ways, options.rows):
        for which, measured in programs.items():
            steps = measured.steps(rows, options.cached, WAYS[way], options.steps)
            seen.setdefault((f"{way}{which}", rows), []).extend(steps)
    return {
        key: {part: statistics.median(step[part] for step in steps) for part in PARTS} for key, steps in seen.items()
    }


def table(parts: dict[tuple[str, int], dict[str, float]]) -> str:
    """In Markdown: milliseconds, what is beside the ops, and tokens a second against the first number of rows."""
    head = [f"{way}, {rows} row{'s' * (rows > 1)}" for way, rows in parts]
    lines = [f"| ms a step | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for part in PARTS:
        lines.append(f"| {part} | {' | '.join(f'{each[part]:.2f}' for each in parts.values())} |")
    wholes = {key: sum(each.values()) for key, each in parts.items()}
    beside = [f"{100 * (wholes[key] / each[OPS] - 1):.1f}%" for key, each in parts.items()]
    rates = {key: 1e3 * key[1] / whole for key, whole in wholes.items()}
    first = {way: next(rate for (each, _), rate in rates.items() if each == way) for way, _ in rates}
    times = [f"{rate:.1f}, {rate / first[way]:.1f} times" for (way, _), rate in rates.items()]
    return "\n".join([*lines, f"| beside the ops | {' | '.join(beside)} |", f"| tokens/s | {' | '.join(times)} |"])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.llama2_13b.bench.engine_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that export wrote")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to choose tokens; default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="default: 1 16")
    for name, value, meaning in (("cached", 128, "tokens of each prompt"), ("steps", 20, "a round"), ("rounds", 3, "")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--beside_without", metavar="PASSES", help="the program without these passes takes turns")
    parser.add_argument("--processor_time", action="store_true", help="instead of the time that passed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    clock = time.process_time if options.processor_time else time.perf_counter
    programs = {"": Measured(options.model, clock)}
    if options.beside_without is not None:
        programs[", without"] = Measured(options.model, clock, left_out(options.beside_without))
    print(table(compared(programs, options)))


if __name__ == "__main__":
    main()
