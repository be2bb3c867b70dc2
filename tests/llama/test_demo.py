"""The demo's journey, with two training steps instead of its hundreds."""

from __future__ import annotations

import json

from examples.llama2_13b import demo
from examples.llama2_13b.demo import DemoFlags


def run(tmp_path, monkeypatch, **limits):
    tuning = json.loads(demo.TUNING.read_text()) | {"max_steps": 2, "warmup_steps": 1, "max_length": 128}
    tuning["src_length"] = 64
    tuning.pop("eval_steps", None)
    short = tmp_path / "tuning.json"
    short.write_text(json.dumps(tuning))
    monkeypatch.setattr(demo, "TUNING", short)
    monkeypatch.setattr(demo, "NUM_HELD_IN", 2)
    for name, value in limits.items():
        monkeypatch.setattr(demo, name, value)
    return demo.demo(DemoFlags(str(tmp_path / "out")))


def test_a_model_that_did_not_learn_fails_the_demo_with_the_reason(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch) == 1
    assert "failed: at least 9 targets must come back and the loss must fall below 0.3" in capsys.readouterr().out


def test_every_stage_leaves_its_files_and_says_where(tmp_path, monkeypatch, capsys):
    for _ in range(2):  # a second run replaces the first
        assert run(tmp_path, monkeypatch, MIN_EXACT=0, MAX_LOSS=100.0) == 0
    shown = capsys.readouterr().out
    out = tmp_path / "out"
    for file in ("tuned/loss.png", "tuned/log.jsonl"):
        assert (out / file).exists() and str(out / file) in shown
    assert len((out / "tuned" / "log.jsonl").read_text().splitlines()) == 2
    assert (out / "exported" / "model.pdiparams").exists()
    assert shown.count("***********Output**********") == 2 * (2 + demo.NUM_HELD_OUT)


def test_held_in_prompts_are_spread_over_the_training_data():
    examples = demo.data.read_examples(demo.data.split_files(demo.HERE / "data", "train"))
    prompts = demo.spread(examples, 10)
    assert len({prompt.question for prompt in prompts}) == 10
    lines = [int(prompt.where.rpartition(":")[2]) for prompt in prompts]
    assert lines == sorted(lines) and lines[-1] - lines[0] > len(examples) // 2
    assert not any(prompt.turns for prompt in prompts)
