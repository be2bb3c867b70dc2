"""fusionkit: the engine with a folder that `export` wrote."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

from examples.llama2_13b.bench.decode.contestant import Answer, Facts, Prompts
from examples.llama2_13b.bench.decode.gguf_weights import described
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Request, SamplingSettings
from examples.llama2_13b.generate.static_program import StaticProgram

BLOCK_SIZE = 64
WEIGHTS = "model.pdiparams"


class FusionkitEngine:
    """
    Args:
        folder: that `export` wrote.
        num_threads: that its kernels use.
        codes: the GGUF file whose codes the folder has as they are; None if it has floats.
    """

    def __init__(self, folder: Path, num_threads: int, codes: Path | None = None) -> None:
        native = importlib.import_module("fusionkit_backends.cpu.runtime").native()
        native.set_num_threads(num_threads)
        self._config = LlamaConfig.from_json(folder / "config.json")
        self._program = StaticProgram(folder, self._config)
        weights, num_bytes = self._floats(folder) if codes is None else described(codes)
        self.facts = Facts(
            version=f"fusionkit {importlib.metadata.version('paddle-fusionkit')}",
            kernels=native.isa(),
            weights=weights,
            cache=self._program.cache_dtype,
            bytes_a_step=num_bytes,
        )

    def _floats(self, folder: Path) -> tuple[str, int]:
        """(dtype, bytes of weights that a step reads): not of the embedding, unless it is the head as well."""
        config, dtype = self._config, self._program.dtype
        embedding = config.vocab_size * config.hidden_size * (4 if dtype == "float32" else 2)
        return dtype, (folder / WEIGHTS).stat().st_size - (0 if config.tie_word_embeddings else embedding)

    def answer(self, prompts: Prompts, num_steps: int) -> Answer:
        engine = self._engine(prompts, num_steps)
        tokens: list[list[int]] = [[] for _ in prompts]
        seconds = []
        while engine.has_work:
            begun = time.perf_counter()
            deltas = engine.step()
            seconds.append(time.perf_counter() - begun)
            for delta in deltas:
                tokens[int(delta.request_id)].extend(delta.tokens)
        assert len(seconds) == num_steps + 1, f"all prompts must begin in one step, got {len(seconds)} steps"
        return Answer(tokens, seconds[0], seconds[1:])

    def _engine(self, prompts: Prompts, num_steps: int) -> Engine:
        num_tokens = sum(map(len, prompts))
        blocks = sum(-(-(len(prompt) + num_steps + 1) // BLOCK_SIZE) for prompt in prompts)
        cache = KeyValueCache(self._config, self._program.cache_dtype, blocks, BLOCK_SIZE)
        limits = EngineLimits(
            self._config.max_position_embeddings, self._config.vocab_size, len(prompts), num_tokens, False
        )
        engine = Engine(self._program, cache, no_text, limits)
        for row, prompt in enumerate(prompts):
            greedy = SamplingSettings(temperature=0)
            engine.add(Request(str(row), tuple(prompt), greedy, max_new_tokens=num_steps + 1))
        return engine


def no_text(tokens: Sequence[int]) -> str:
    """Peers are asked for tokens, too."""
    return ""
