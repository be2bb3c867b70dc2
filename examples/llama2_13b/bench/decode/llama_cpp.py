"""llama.cpp as npm's package brings it, with the library that it has for this processor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from ctypes import POINTER, c_int8, c_int32, c_void_p, cast
from pathlib import Path

import numpy as np

from examples.llama2_13b.bench.decode.contestant import Answer, Facts, Missing, Prompts
from examples.llama2_13b.bench.decode.gguf_weights import described
from examples.llama2_13b.bench.decode.llama_library import Batch, LlamaLibrary, best_cpu_library

ROOM = 256  # llama.cpp pads a sequence's positions to a multiple of this
Place = tuple[int, int, int, bool]  # token, position, sequence, whether its scores are wanted


class LlamaCpp:
    """
    Args:
        model: the GGUF file.
        num_threads: for prompts and answers.

    Raises:
        Missing: the package is not there, or has not chosen the processor's library.
    """

    def __init__(self, model: Path, num_threads: int) -> None:
        self._library = LlamaLibrary()
        self._num_threads = num_threads
        self._model = self._library.model_load_from_file(str(model).encode(), self._library.model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp: {model} could not be loaded: {self._library.messages[-2000:]}")
        self._vocab_size = self._library.vocab_n_tokens(self._library.model_get_vocab(self._model))
        weights, num_bytes = described(model)
        self.facts = Facts(
            version=f"llama.cpp {self._library.version().decode()}",
            kernels=self._chosen(),
            weights=weights,
            cache="float16",
            bytes_a_step=num_bytes,
        )

    def _chosen(self) -> str:
        chosen, best = self._library.cpu_library(), best_cpu_library(Path("/proc/cpuinfo").read_text())
        if chosen != best:
            raise Missing(f"llama.cpp: its library for this processor must be {best}, got {chosen}")
        return chosen

    def answer(self, prompts: Prompts, num_steps: int) -> Answer:
        context = self._context(prompts, num_steps)
        try:
            begun = time.perf_counter()
            tokens = [self._prefill(context, row, prompt) for row, prompt in enumerate(prompts)]
            prefill_s, seconds = time.perf_counter() - begun, []
            for step in range(num_steps):
                begun = time.perf_counter()
                places = [(each[-1], len(prompt) + step) for each, prompt in zip(tokens, prompts, strict=True)]
                self._decode(context, [(*place, row, True) for row, place in enumerate(places)])
                for row, each in enumerate(tokens):
                    each.append(self._best(context, row))
                seconds.append(time.perf_counter() - begun)
        finally:
            self._library.free(context)
        return Answer(tokens, prefill_s, seconds)

    def _context(self, prompts: Prompts, num_steps: int) -> int:
        params = self._library.context_default_params()
        positions = max(map(len, prompts)) + num_steps + 1
        params.n_seq_max = len(prompts)
        params.n_ctx = len(prompts) * -(-positions // ROOM) * ROOM
        params.n_batch = max(params.n_batch, *map(len, prompts), len(prompts))
        params.n_threads = params.n_threads_batch = self._num_threads
        context: int | None = self._library.init_from_model(self._model, params)
        if not context:
            raise ValueError(f"llama.cpp: no context for {len(prompts)} rows: {self._library.messages[-2000:]}")
        return context

    def _prefill(self, context: int, row: int, prompt: Sequence[int]) -> list[int]:
        last = len(prompt) - 1
        self._decode(context, [(token, position, row, position == last) for position, token in enumerate(prompt)])
        return [self._best(context, last)]

    def _decode(self, context: int, places: Sequence[Place]) -> None:
        count = len(places)
        tokens, positions, rows, wanted = zip(*places, strict=True)
        sequences = (c_int32 * count)(*rows)
        size = np.dtype(np.int32).itemsize
        begin = cast(sequences, c_void_p).value or 0
        pointers = (POINTER(c_int32) * count)(*(cast(begin + size * index, POINTER(c_int32)) for index in range(count)))
        arrays = [(c_int32 * count)(*values) for values in (tokens, positions, [1] * count)]
        batch = Batch(count, arrays[0], None, arrays[1], arrays[2], pointers, (c_int8 * count)(*wanted))
        if status := self._library.decode(context, batch):
            raise ValueError(f"llama.cpp: llama_decode returned {status}: {self._library.messages[-2000:]}")

    def _best(self, context: int, index: int) -> int:
        scores = self._library.get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(scores, (self._vocab_size,)).argmax())
