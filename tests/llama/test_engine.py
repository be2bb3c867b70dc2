"""The engine: requests enter and leave between steps. A tiny model, greedy unless said otherwise."""

from __future__ import annotations

import pytest

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Request, SamplingSettings
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.model.config import LlamaConfig

GREEDY = SamplingSettings(temperature=0)


@pytest.fixture(scope="module")
def program(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "float32"
    export(ExportFlags(str(tiny_folder), str(folder)))
    config = LlamaConfig.from_json(tiny_folder / "config.json")
    return config, StaticProgram(folder, config)


@pytest.fixture
def engine(program):
    config, step = program
    limits = EngineLimits(config.max_position_embeddings, config.vocab_size, max_rows=4, max_tokens_per_step=32)
    return Engine(step, KeyValueCache(config, "float32", 16, 4), lambda tokens: " ".join(map(str, tokens)), limits)


def news(engine):
    """request id -> (tokens, finish reason), of all steps together."""
    answers = {}
    while engine.has_work:
        for delta in engine.step():
            tokens, reason = answers.get(delta.request_id, ((), None))
            assert reason is None
            answers[delta.request_id] = tokens + delta.tokens, delta.finish_reason
    return answers


def test_requests_enter_between_steps_and_all_are_answered(engine):
    engine.add(Request("a", (5, 6, 7), GREEDY, max_new_tokens=6))
    engine.step()
    engine.add(Request("b", (8, 9), GREEDY, max_new_tokens=3))
    answers = news(engine)
    assert {name: (len(tokens), reason) for name, (tokens, reason) in answers.items()} == {
        "a": (5, "length"),
        "b": (3, "length"),
    }
    assert engine.stats.free_blocks == engine.stats.total_blocks == 16


@pytest.mark.parametrize(
    "request_, text",
    [
        (Request("a", ()), "request a: prompt must be at least one token long, got 0"),
        (Request("a", (1,) * 256), "prompt must be shorter than the model's 256 positions, got 256"),
        (Request("a", (1,) * 64), "prompt must be shorter than the 64 positions of the cache, got 64"),
        (Request("a", (1, 512)), r"prompt must be of tokens below vocab_size 512, got \[512\]"),
        (Request("a", (1,), SamplingSettings(logit_bias={600: 1.0})), "logit_bias must be of tokens below vocab_size"),
        (Request("taken", (1,)), "id must be of no other request that is under way, got taken"),
    ],
)
def test_what_can_never_run_is_refused_by_name(engine, request_, text):
    engine.add(Request("taken", (1,)))
    with pytest.raises(ValueError, match=text):
        engine.add(request_)


def test_a_cancelled_request_says_so_and_gives_its_blocks_back(engine):
    for name in ("runs", "waits", *"abc"):
        engine.add(Request(name, (5, 6, 7), GREEDY, max_new_tokens=5))
    engine.step()
    assert engine.cancel("runs") and engine.cancel("c") and not engine.cancel("nobody")
    answers = news(engine)
    assert {name for name, (_, reason) in answers.items() if reason == "cancelled"} == {"runs", "c"}
    assert not engine.has_work and not engine.cancel("runs")
    assert engine.stats.free_blocks == engine.stats.total_blocks
