"""The serving benchmark: both ways answer the same requests, what is lost is seen, and the table says what came out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import psutil
import pytest

from examples.llama2_13b.bench import serving as benchmark
from examples.llama2_13b.bench.serving import Asked, Measured
from examples.llama2_13b.serving.served_model import ServedModel
from tests.llama.served import ScriptedEngine, served, until

SMALL = ["--clients=3", "--seconds=0.3", "--max_rows=2", "--longest_prompt=8", "--longest_answer=16"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ServedModel.from_folder(tiny_folder, "model", None)


def test_both_ways_answer_the_same_requests(tiny_folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["serving", f"--model={tiny_folder}", f"--json={path}", *SMALL])
    assert benchmark.main() == 0
    dynamic, batches, padded = json.loads(path.read_text()).values()
    for name in ("requests", "tokens"):
        assert dynamic[name] == batches[name] == padded[name] >= 3
    for each in (dynamic, batches, padded):
        assert each["lost"] == each["leaked_blocks"] == 0 and 0 < each["first_p50_s"] <= each["first_p95_s"]
        assert each["tokens_per_second"] == pytest.approx(each["tokens"] / each["seconds"])
        assert each["processor_seconds"] > 0
        assert 100 < each["memory_start_mb"] <= each["memory_end_mb"] + 50
    ratio = dynamic["tokens_per_second"] / batches["tokens_per_second"]
    assert f"{ratio:.2f} times the tokens a second of batches" in capsys.readouterr().out


def address_of(address):
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def test_a_batch_begins_when_the_last_has_ended(model):
    engine = ScriptedEngine(max_rows=8)
    asked = [Asked("a", number) for number in (3, 9, 5, 2, 8)]
    with served(engine, model) as (_, address):
        done = benchmark.in_batches(address_of(address), "model", asked, 2)
    assert [(each.num_tokens, answered.num_tokens) for each, answered in done if answered.error] == []
    ended = [each.num_tokens for each, _ in done]
    assert [set(ended[start : start + 2]) for start in (0, 2, 4)] == [{3, 9}, {5, 2}, {8}]
    assert all(request.ignore_eos for request in engine.added)


def test_a_padded_batch_computes_every_row_as_long_as_the_longest_and_counts_answers_alone(model):
    engine = ScriptedEngine(max_rows=8)
    asked = [Asked("a", number) for number in (3, 9, 5)]
    with served(engine, model) as (_, address):
        done = benchmark.in_batches(address_of(address), "model", asked, 2, is_padded=True)
    assert sorted(request.max_new_tokens for request in engine.added) == [5, 9, 9]
    assert sorted((each.num_tokens, answered.num_tokens) for each, answered in done) == [(3, 3), (5, 5), (9, 9)]
    with served(ScriptedEngine(), model, capacity=1) as (_, address):
        done = benchmark.in_batches(address_of(address), "model", [Asked("a", 200)] * 6, 6, is_padded=True)
    assert any(answered.error and answered.num_tokens == 0 for _, answered in done)


def test_memory_is_looked_at_from_the_beginning_to_the_end():
    numbers = itertools.count()
    with benchmark.sampled(lambda: next(numbers), 0.001) as seen:
        until(lambda: len(seen) > 5)
    assert seen == list(range(len(seen))) and next(numbers) == len(seen)


def test_processor_time_and_memory_are_those_of_the_process():
    server = object.__new__(benchmark.Server)
    server._process = psutil.Process()
    worked, seen = server._process.cpu_times(), server._process.memory_info().rss
    assert server.processor_seconds == pytest.approx(worked.user + worked.system, abs=0.5)
    assert server.memory_mb == pytest.approx(seen / 1e6, rel=0.05)


def test_what_is_refused_or_breaks_off_is_lost(model):
    with served(ScriptedEngine(), model, capacity=1) as (_, address):
        done = benchmark.in_batches(address_of(address), "model", [Asked("a", 200)] * 6, 6)
        assert any("status 429" in answered.error for _, answered in done)
    lost = benchmark.ask(address_of(address), "model", Asked("a", 1))
    assert lost.error and lost.num_tokens == 0


def test_lengths_are_mixed_and_the_same_for_a_seed():
    first, again, other = (list(itertools.islice(benchmark.requests(seed, 256, 256), 2000)) for seed in (1, 1, 2))
    assert first == again != other
    tokens = np.array([each.num_tokens for each in first])
    assert tokens.min() >= 8 and tokens.max() <= 256
    counts = [np.sum((low <= tokens) & (tokens < 2 * low)) for low in (8, 16, 32, 64, 128)]
    assert all(300 < count < 500 for count in counts)  # 400 each, 18 of standard deviation


@pytest.mark.parametrize("count", [1, 2, 7, 20, 100])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_a_quantile_is_numpy_s(count, part):
    values = sorted(np.random.default_rng(count).random(count).tolist())
    assert benchmark.quantile(values, part) == np.quantile(values, part, method="inverted_cdf")
    assert math.isnan(benchmark.quantile([], part))


def test_the_table_has_a_line_for_each():
    one = Measured(10, 1000, 4.0, 3.2, 0.5, 0.75, 0, 0, 0, 100.0, 101.0, 102.0)
    lines = benchmark.table({"dynamic insertion": one, "batches": dataclasses.replace(one, seconds=10.0)}).splitlines()
    assert lines[2] == "| dynamic insertion | 10 | 1000 | 250.0 | 312.5 | 0.50, 0.75 | 0 | 0 | 100, 101, 102 |"
    assert lines[-1] == "dynamic insertion: 2.50 times the tokens a second of batches"
