"""OpenVINO GenAI: its pipeline that answers many requests at a time, on a GGUF file."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np

from examples.llama2_13b.bench.decode.contestant import Answer, Facts, Missing, Prompts
from examples.llama2_13b.bench.decode.gguf_weights import described
from examples.llama2_13b.bench.decode.llama_library import INSTALL

NEEDED = ("openvino", "openvino_genai", "openvino_tokenizers")


class OpenVinoGenAI:
    """
    Args:
        model: the GGUF file.
        num_threads: that its kernels use.
        most_tokens: of all prompts together.
        most_rows: side by side.
        cache_gb: memory of keys and values.

    Raises:
        Missing: a package is not installed.
    """

    def __init__(self, model: Path, num_threads: int, most_tokens: int, most_rows: int, cache_gb: int) -> None:
        if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise Missing(f"OpenVINO GenAI: {', '.join(absent)} is not installed. Run: {INSTALL}")
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens, scheduler.max_num_seqs = most_tokens, most_rows
        scheduler.cache_size, scheduler.enable_prefix_caching = cache_gb, False
        properties = {"INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
        self._requests = 0
        weights, num_bytes = described(model)
        self.facts = Facts(
            version=f"OpenVINO GenAI {genai.__version__.partition('-')[0]}",
            kernels=kernels(),
            weights=weights,
            cache=cache_dtype(),
            bytes_a_step=num_bytes,
        )

    def answer(self, prompts: Prompts, num_steps: int) -> Answer:
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_steps + 1, True, False
        handles = []
        for prompt in prompts:
            tokens = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._requests, tokens, config))
            self._requests += 1
        seconds = []
        while self._pipeline.has_non_finished_requests():
            begun = time.perf_counter()
            self._pipeline.step()
            seconds.append(time.perf_counter() - begun)
        answers = [[int(token) for token in handle.read_all()[0].generated_ids] for handle in handles]
        assert len(seconds) == num_steps + 1, f"all prompts must begin in one step, got {len(seconds)} steps"
        return Answer(answers, seconds[0], seconds[1:])


def kernels() -> str:
    """What OpenVINO says that the processor can do for it."""
    import openvino

    listed = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ", ".join(sorted(str(each) for each in listed if each != "EXPORT_IMPORT"))


def cache_dtype() -> str:
    import openvino

    return str(openvino.Core().get_property("CPU", "KV_CACHE_PRECISION")).removeprefix("<Type: '").removesuffix("'>")
