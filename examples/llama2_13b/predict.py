"""Answers prompts with an exported model, several at a time.

    python -m examples.llama2_13b.predict --model_name_or_path output/exported "first prompt" "second prompt"
    python -m examples.llama2_13b.predict --model_name_or_path output/exported --data_file dev.json

Prints the source, target and output of each prompt, and a JSON line: into --output_file, or after the prompt's output.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.data.conversation import template_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate import prompts
from examples.llama2_13b.generate.device import DEVICE, WITHOUT_PASSES, left_out, use_device
from examples.llama2_13b.generate.engine import Engine, EngineLimits, EngineStats
from examples.llama2_13b.generate.generation_settings import FILE, STRATEGIES, GenerationSettings
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.prompts import Prompt
from examples.llama2_13b.generate.request import Request
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.io import flags
from examples.llama2_13b.io.flags import Checked, flag, words
from examples.llama2_13b.io.remarks import required, say, shown
from examples.llama2_13b.io.reservation import new_file

PROGRAM = "examples.llama2_13b.predict"
SETTINGS = (
    "decode_strategy", "top_p", "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "top_k",
    "min_p",
)  # fmt: skip
SAMPLING = ("top_p", "temperature", "top_k", "min_p")
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class PredictFlags(Checked):
    """Named as Paddle's users know them. What stands in the exported generation_config.json is the default."""

    COMMAND: ClassVar[str] = "predict"
    model_name_or_path: str = flag("folder that export wrote")
    prompts: tuple[str, ...] = words("what to answer; one about an idiom if neither these nor data_file are given")
    data_file: str | None = flag("prompts: .json lines with src and tgt, or text with a prompt a line", None)
    output_file: str | None = flag("JSON lines go here", None)
    src_length: int | None = flag("tokens kept of a source, its end; all if not given", None)
    max_length: int | None = flag(f"new tokens of an answer at most, {MAX_NEW_TOKENS} unless the model says", None)
    batch_size: int = flag("prompts at a time", 8)
    block_size: int = flag("positions in a block of the key-value cache", 64)
    step_tokens: int = flag("tokens of prompts and answers in a step at most; longer prompts take several", 512)
    decode_strategy: str | None = flag(" | ".join(STRATEGIES), None)
    top_p: float | None = flag("sample from the fewest likeliest tokens with this sum, 0.7 unless the model says", None)
    temperature: float | None = flag("scores are divided by it, 0.95 unless the model says", None)
    repetition_penalty: float | None = flag("scores of tokens seen are lowered by this factor", None)
    presence_penalty: float | None = flag("subtracted from scores of tokens that the answer has, in [-2, 2]", None)
    frequency_penalty: float | None = flag("likewise, for each time that the answer has the token", None)
    top_k: int | None = flag("sample from so many likeliest tokens, all if 0 or if the model does not say", None)
    min_p: float | None = flag("sample from tokens with this part of the highest probability", None)
    stop: str | None = flag("the answer ends before this text", None)
    seed: int = flag("of sampling", 42)
    device: str | None = flag(DEVICE, None)
    without_passes: str | None = flag(WITHOUT_PASSES, None)

    def __post_init__(self) -> None:
        for name in ("src_length", "max_length", "batch_size", "block_size", "step_tokens"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "at least 1")
        self.require(self.seed >= 0, "seed", "at least 0")
        self.require(self.stop != "", "stop", "a text that is not empty")
        self.require(not (self.prompts and self.data_file), "data_file", "left out with prompts on the command line")
        same = (
            self.output_file and self.data_file and Path(self.output_file).resolve() == Path(self.data_file).resolve()
        )
        self.require(not same, "output_file", "another file than data_file")

    def settings(self, of_model: GenerationSettings) -> GenerationSettings:
        """The model's settings with what was given here; what would have no effect is refused."""
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        if self.stop is not None:
            given["stop_strings"] = (self.stop,)
        settings = dataclasses.replace(of_model, **given)
        for name in SAMPLING:
            self.require(not settings.is_greedy or name not in given, name, "left out with greedy_search")
        return settings

    def lengths(self, of_model: GenerationSettings, positions: int) -> tuple[int, int]:
        """(new tokens, tokens of prompt and answer together), both at most."""
        if self.max_length is not None:
            self.require(self.max_length < positions, "max_length", f"below the model's {positions} positions")
            return self.max_length, positions
        if of_model.max_new_tokens is not None:
            return of_model.max_new_tokens, positions
        return MAX_NEW_TOKENS, min(positions, of_model.max_length or positions)


@dataclass(frozen=True)
class Prediction:
    prompt: Prompt
    output: str

    def banners(self) -> str:
        source, target = (_shown(text) for text in (self.prompt.src, self.prompt.tgt))
        parts = (("Source", source), ("Target", target), ("Output", self.output))
        return "\n".join(f"***********{name}**********\n{text}" for name, text in parts)

    def json_line(self, encoding: str = "utf-8") -> str:
        fields = {"src": self.prompt.src, "tgt": self.prompt.tgt, "output": self.output}
        line = json.dumps(fields, ensure_ascii=False)
        try:
            line.encode(encoding)
        except UnicodeEncodeError:
            return json.dumps(fields)  # JSON's own escapes, which every reader knows
        return line


def _shown(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "\n".join(text)


class Predictor:
    """An exported folder, ready to answer. Everything is checked before the weights are read.

    Raises:
        ValueError, OSError: something in the folder, the flags or a prompt is wrong.
    """

    def __init__(self, flags: PredictFlags, asked: list[Prompt]) -> None:
        folder = Path(flags.model_name_or_path)
        config = LlamaConfig.from_json(folder / "config.json")
        of_model = GenerationSettings.from_pretrained(folder, config)
        settings, self.without_effect = flags.settings(of_model), of_model.without_effect
        self._tokenizer = Tokenizer.from_pretrained(folder)
        template = template_of(folder)
        positions = config.max_position_embeddings
        max_length, max_tokens = flags.lengths(of_model, positions)
        context, cure = f"the model has {positions} positions", "Shorten it"
        if flags.max_length is not None:
            context, cure = f"{context} and --max_length {flags.max_length} takes the rest", "Lower --max_length"
        elif max_tokens < positions:
            context, cure = f"{context}, and max_length of {FILE} is {max_tokens}", "Give --max_length"
        room = flags.max_length or 1  # an answer whose length was not asked for ends where the positions do
        self._asked = asked
        self._tokens = prompts.encode(
            asked, self._tokenizer, template, flags.src_length, max_tokens - room, context, cure
        )
        program = StaticProgram(folder, config, left_out(flags.without_passes))
        self.passes_log, self.steps_op_by_op = program.passes_log, program.steps_op_by_op
        longest = min(max(map(len, self._tokens)) + max_length, max_tokens)
        num_blocks = min(flags.batch_size, len(asked)) * -(-longest // flags.block_size)
        cache = KeyValueCache(config, program.cache_dtype, num_blocks, flags.block_size)
        step_tokens = max(flags.step_tokens, flags.batch_size)
        limits = EngineLimits(max_tokens, config.vocab_size, flags.batch_size, step_tokens, program.takes_parts)
        self.engine = Engine(program, cache, self._tokenizer.decode, limits)
        self._requests = [
            Request(
                str(number),
                tuple(tokens),
                settings.sampling(_seed(flags.seed, number)),
                max_length,
                settings.stop_strings,
                eos_token_ids=settings.eos_token_ids,
            )
            for number, tokens in enumerate(self._tokens)
        ]

    def run(self) -> Iterator[Prediction]:
        """In the order of the prompts, each as soon as it and those before it are answered.

        Raises:
            FloatingPointError: the model's scores are not finite; the prompt is named.
        """
        for request in self._requests:
            self.engine.add(request)
        texts = dict.fromkeys(range(len(self._asked)), "")
        ended: set[int] = set()
        shown = 0
        while self.engine.has_work:
            for delta in self.engine.step():
                number = int(delta.request_id)
                texts[number] += delta.text
                if delta.finish_reason == "error":
                    where = self._asked[number].where
                    raise FloatingPointError(
                        f"predict: the model's scores for {where} must be finite, got NaN or infinity"
                    )
                if delta.finish_reason:
                    ended.add(number)
            while shown in ended:
                yield Prediction(self._asked[shown], texts.pop(shown))
                shown += 1


def _seed(seed: int, number: int) -> int:
    """A seed for each prompt: NumPy reads an integer of any length, 32 bits at a time."""
    return seed + (number << 64)


def predict(flags: PredictFlags) -> int:
    """Answer every prompt and return 0."""
    if flags.data_file is not None:
        asked = prompts.from_file(Path(flags.data_file))
    else:
        asked = prompts.from_texts(flags.prompts or [prompts.DEFAULT])
    use_device(flags.device, "predict")
    predictor = Predictor(flags, asked)
    for line in predictor.passes_log:
        say(line, sys.stderr)
    if predictor.without_effect:
        say(predictor.without_effect, sys.stderr)
    started = time.perf_counter()
    if flags.output_file is None:
        for prediction in predictor.run():
            _print(prediction)
    else:
        with new_file(Path(flags.output_file), "predict: --output_file") as lines:
            for prediction in predictor.run():
                print(prediction.json_line(), file=lines, flush=True)
                say(prediction.banners())  # after the file, which must have every answer, whoever reads the screen
    say(summary(predictor.engine.stats, len(asked), time.perf_counter() - started), sys.stderr)
    for reason, count in predictor.steps_op_by_op.items():
        say(f"steps op by op: {count}: {reason}", sys.stderr)
    return 0


def summary(stats: EngineStats, num_prompts: int, seconds: float) -> str:
    """What was done, in a line."""
    tokens = stats.generated_tokens
    rate = f"{tokens} in {seconds:.1f} s, {tokens / seconds:.0f} a second"
    reused = f"{stats.prefix_hit_tokens} of {stats.prompt_tokens} prompt tokens found in the cache"
    return f"prompts: {num_prompts}; tokens: {rate}; steps: {stats.steps}; {reused}"


def _print(prediction: Prediction) -> None:
    """Banners and line; when the reader has gone, as after `| head`, the command ends like others there."""
    stream = required()
    line = prediction.json_line(getattr(stream, "encoding", None) or "ascii")
    try:
        print(f"{shown(prediction.banners(), stream)}\n{line}", file=stream, flush=True)
    except BrokenPipeError:
        raise SystemExit(128 + signal.SIGPIPE) from None


if __name__ == "__main__":
    flags.main(PredictFlags, predict, PROGRAM)
