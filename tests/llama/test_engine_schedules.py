"""A request's tokens under any schedule: alone, in a full batch, after it lost its blocks, in parts, over a prefix.

First over `PrefixModel`, whose scores show every fault of the engine. Then over the exported program on the cpu
backend, bit by bit: that shows which op's result for a row depends on the other rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Request, SamplingSettings
from examples.llama2_13b.generate.static_program import StaticProgram
from tests.llama.prefix_model import answer_alone, finish, letters, make_engine, step

CHOSEN = (
    SamplingSettings(temperature=0),
    SamplingSettings(temperature=1.5, seed=3),
    SamplingSettings(seed=4, top_p=0.8, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
    SamplingSettings(seed=5, top_k=5, min_p=0.05, logit_bias={3: 4.0}),
)
COMMON = tuple(token * 7 % 40 for token in range(40))  # prompts begin with a part of it


@st.composite
def requests(draw):
    """Prompts that share beginnings, some of whole blocks."""
    found = []
    for number in range(draw(st.integers(1, 7))):
        shared, own = draw(st.sampled_from([0, 3, 8, 16, 21, 40])), draw(st.integers(0, 9))
        prompt = (*COMMON[:shared], *((number + token) % 40 for token in range(own))) or (number,)
        found.append(
            Request(
                str(number),
                prompt,
                draw(st.sampled_from(CHOSEN)),
                draw(st.integers(1, 14)),
                eos_token_ids=draw(st.sampled_from([(), (3,), (5, 9, 11)])),
            )
        )
    return found


@st.composite
def schedules(draw):
    """(requests, when each comes, which are cancelled and when, what the engine may hold)."""
    asked = draw(requests())
    arrivals = [draw(st.integers(0, 12)) for _ in asked]
    cancelled = draw(st.dictionaries(st.sampled_from([one.id for one in asked]), st.integers(0, 25), max_size=2))
    block_size = draw(st.sampled_from([1, 4, 8]))
    longest = max(len(one.prompt) + one.max_new_tokens for one in asked)
    least = -(-longest // block_size)
    limits = {
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(0, 2 * least)),
        "max_rows": draw(st.integers(1, 5)),
        "max_tokens_per_step": draw(st.sampled_from([5, 7, 16, 64])),
        "reuse_prefixes": draw(st.booleans()),
    }
    return asked, arrivals, cancelled, limits


def run_schedule(engine, asked, arrivals, cancelled):
    """request id -> (tokens, text, finish reason); the engine's books are checked after every step."""
    answers = {}
    for now in range(max([*arrivals, *cancelled.values()], default=0) + 1):
        for request, arrival in zip(asked, arrivals, strict=True):
            if arrival == now:
                engine.add(request)
        for name, when in cancelled.items():
            if when == now:
                engine.cancel(name)
        step(engine, answers)
    return finish(engine, answers)


@given(schedules())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_schedule_changes_a_token(schedule):
    asked, arrivals, cancelled, limits = schedule
    engine = make_engine(**limits)
    answers = run_schedule(engine, asked, arrivals, cancelled)
    assert answers.keys() == {request.id for request in asked}
    for request in asked:
        tokens, text, reason = answers[request.id]
        alone = answer_alone(request, 256)
        if reason == "cancelled":
            assert request.id in cancelled and tokens == alone[: len(tokens)] and tokens != alone
        else:
            ended = alone[-1] in request.eos_token_ids
            assert (tokens, reason) == (alone, "stop" if ended else "length")
            assert text == letters(alone[: len(alone) - ended])


LENGTHS = {"one": 1, "few": 4, "five": 5, "part": 17, "block": 32, "long": 70, "longer": 290}


@pytest.fixture(scope="module", params=[None, "int8"], ids=["cache of floats", "cache of int8"])
def program(request, tiny_folder, tmp_path_factory):
    """The tiny model with room for prompts that the kernels would split over threads."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("positions") / "model")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 512}))
    export(ExportFlags(str(folder), str(folder / "exported"), cache_dtype=request.param))
    config = LlamaConfig.from_json(folder / "config.json")
    return config, StaticProgram(folder / "exported", config)


class Watched(Engine):
    """Keeps the bits of the scores that each token was chosen from."""

    def _advance(self, row, scores):
        self.bits[row.request.id, len(row.tokens)] = hashlib.sha256(scores.tobytes()).hexdigest()[:16]
        return super()._advance(row, scores)


def watched(program, block_size, num_blocks, **limits):
    config, step = program
    cache = KeyValueCache(config, step.cache_dtype, num_blocks, block_size)
    for tensors in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
        if tensors and tensors[0].dtype == paddle.float32:
            never_written = np.full(tensors[0].shape, np.nan, np.float32)
            tensors[:] = [paddle.to_tensor(never_written) for _ in tensors]
    chosen = EngineLimits(config.max_position_embeddings, config.vocab_size, **limits)
    engine = Watched(step, cache, str, chosen)
    engine.bits = {}
    return engine


@pytest.fixture(scope="module")
def alone(program):
    """request -> (its tokens, the bits of its scores), each computed in an engine of its own."""
    random = np.random.default_rng(8)
    common = random.integers(3, 512, max(LENGTHS.values())).tolist()
    found = {}
    for number, (name, length) in enumerate(LENGTHS.items()):
        prompt = tuple(common[: length - 1]) + (3 + number,)
        request = Request(name, prompt, CHOSEN[number % len(CHOSEN)], 5)
        engine = watched(program, 16, 20, max_rows=1)
        engine.add(request)
        ((tokens, _, _),) = finish(engine).values()
        found[request] = tokens, engine.bits
    return found


@st.composite
def real_schedules(draw):
    names = draw(st.lists(st.sampled_from(sorted(LENGTHS)), min_size=1, max_size=5, unique=True))
    block_size = draw(st.sampled_from([4, 16]))
    least = -(-(max(LENGTHS[name] for name in names) + 5) // block_size)
    limits = {
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(0, least)),
        "max_rows": draw(st.integers(1, 5)),
        "max_tokens_per_step": draw(st.sampled_from([5, 23, 64, 512])),
        "reuse_prefixes": draw(st.booleans()),
    }
    return names, [draw(st.integers(0, 6)) for _ in names], limits


@given(schedule=real_schedules())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_schedule_changes_a_bit_of_the_scores(program, alone, schedule):
    names, arrivals, limits = schedule
    asked = {request.id: request for request in alone}
    engine = watched(program, **limits)
    answers = run_schedule(engine, [asked[name] for name in names], arrivals, {})
    for name in names:
        tokens, bits = alone[asked[name]]
        assert answers[name][0] == tokens
        assert {key: value for key, value in engine.bits.items() if key[0] == name} == bits
