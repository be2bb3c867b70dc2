"""The training benchmark: contestants start alike, and the table says what each reached."""

from __future__ import annotations

import json

import pytest

from examples.llama2_13b.bench import step as benchmark
from examples.llama2_13b.bench import training_step

SIZES = ["--hidden_size=64", "--intermediate_size=96", "--num_attention_heads=4", "--vocab_size=300", "--seq_len=32"]


@pytest.fixture
def options():
    return benchmark.arguments([*SIZES, "--rounds=1", "--steps=1"])


def test_contestants_start_from_the_same_model(options):
    config = benchmark.config_of(options)
    pytest.importorskip("torch")
    for name in training_step.CONTESTANTS:
        result = training_step.run(name, config, options.seq_len, 1, 2, keeps_memory=False)
        first = result["losses"][0]
        assert first == pytest.approx(5.71, abs=0.05), name  # near ln 300
        assert result["losses"][-1] < first, name


def test_command_prints_a_table_and_writes_json(options, tmp_path, capsys):
    options.runs, options.json = ["fusionkit", "eager"], tmp_path / "measured.json"
    measured = benchmark.measure(options)
    text = benchmark.table(measured, benchmark.config_of(options), options.seq_len)
    assert "| fusionkit |" in text and "5.0x" in text
    assert json.loads(json.dumps(measured, default=str))["product_rate"][0] > 0


def test_another_model_is_found_out():
    runs = {"fusionkit": [{"losses": [5.7, 5.6]}], "eager": [{"losses": [5.8, 5.6]}]}
    with pytest.raises(SystemExit, match="first losses must agree"):
        benchmark.require_same_start(runs)


def test_a_contestant_that_does_not_learn_is_found_out():
    with pytest.raises(SystemExit, match="eager must learn"):
        benchmark.require_same_start({"eager": [{"losses": [5.7, 5.7]}]})


def test_a_screen_that_fails_costs_no_measurement(monkeypatch, tmp_path):
    """The record is written before the table is printed, also into a folder that is not there yet."""
    path = tmp_path / "made" / "step.json"
    options = benchmark.arguments([*SIZES, "--json", str(path)])
    monkeypatch.setattr(benchmark, "arguments", lambda: options)
    monkeypatch.setattr(benchmark, "measure", lambda options: {"runs": 1})
    monkeypatch.setattr(benchmark, "table", closed)
    with pytest.raises(BrokenPipeError):
        benchmark.main()
    assert json.loads(path.read_text()) == {"runs": 1}


def closed(*arguments):
    raise BrokenPipeError
