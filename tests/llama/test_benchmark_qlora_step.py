"""The benchmark of a QLoRA step: its slices run over packs, and the whole is on their line."""

from __future__ import annotations

import json

import pytest

import fusionkit as fk
from examples.llama2_13b.bench import qlora_step as benchmark
from tests.llama.conftest import EXAMPLE

TINY = ["--config", str(EXAMPLE / "configs" / "tiny.json"), "--tokens", "16", "--steps", "2"]


def test_a_slice_learns_over_packs(capsys):
    fk.ledger().reset()
    row = benchmark.run(1, benchmark.parser().parse_args([*TINY, "--weight_dtype", "int8"]))
    assert row.keys() == benchmark.COLUMNS.keys() and all(value > 0 for value in row.values())
    assert fk.ledger().ways()["fused_linear", "cpu", "int8 dequantized to panels of its transpose, for x's gradient"]
    first, second = json.loads(capsys.readouterr().err.partition("losses ")[2])
    assert second < first


def test_the_whole_is_extrapolated_from_two_slices(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "in_own_process", lambda count, argv: dict.fromkeys(benchmark.COLUMNS, 5.0 + count))
    config = json.loads((EXAMPLE / "configs" / "tiny.json").read_text()) | {"num_hidden_layers": 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    written = tmp_path / "figures" / "step.json"
    assert benchmark.main(["--config", str(tmp_path / "config.json"), "--json", str(written)]) == 0
    rows = json.loads(written.read_text())["rows"]
    assert rows["40 layers, extrapolated"] == dict.fromkeys(benchmark.COLUMNS, pytest.approx(45.0))
    assert "| 40 layers, extrapolated | 45 |" in capsys.readouterr().out
