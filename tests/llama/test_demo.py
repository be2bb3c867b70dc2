"""The demo itself, once, as `make demo` runs it; and the one that did not learn."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest

from examples.llama2_13b import demo
from examples.llama2_13b.demo import DemoFlags
from examples.llama2_13b.train.metrics import read_log


def run(out):
    """(status, what was printed)."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(screen):
        code = demo.demo(DemoFlags(str(out)))
    screen.seek(0)
    return code, screen.read()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """(folder, status, what was printed) of a demo with two training steps."""
    folder = tmp_path_factory.mktemp("demo")
    short = json.loads(demo.TUNING.read_text()) | {"max_steps": 2, "warmup_steps": 1, "eval_steps": 1}
    (folder / "tuning.json").write_text(json.dumps(short))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TUNING", folder / "tuning.json")
        patch.setattr(demo, "MAX_ANSWER", 4)  # a model that learned nothing ends no answer
        return folder / "out", *run(folder / "out")


@pytest.fixture(scope="module")
def whole(two_steps):
    """The same of the whole demo, which replaces that."""
    return two_steps[0], *run(two_steps[0])


def test_a_model_that_did_not_learn_fails_the_demo_with_the_reason(two_steps):
    _, code, shown = two_steps
    assert code == 1
    assert "failed: the evaluation loss must fall below 50% of the first" in shown
    assert "at least 80% of the attributes must be named" in shown


def test_the_evaluation_loss_falls(whole):
    out, code, shown = whole
    assert code == 0, shown
    evaluated = [line["eval_loss"] for line in read_log(out / "tuned" / "log.jsonl") if "eval_loss" in line]
    assert len(evaluated) >= 10
    assert evaluated[-1] < 0.2 * evaluated[0]
    assert evaluated[-1] < 2 * min(evaluated), "it rose again: the model learned the data by heart"


def test_unseen_prompts_get_sentences_that_name_their_attributes(whole):
    _, _, shown = whole
    named, attributes = map(int, re.search(r"unseen prompts: (\d+) of (\d+) attributes named", shown).groups())
    assert attributes >= 200 and named >= 0.8 * attributes


def test_an_english_and_a_chinese_answer_are_shown_and_every_file_is_named(whole):
    out, _, shown = whole
    assert shown.count("***********Output**********") == 2
    assert re.search(r"Source\*+\ntype#", shown) and re.search(r"Source\*+\n类型#", shown)
    assert "the model knows nothing" in shown
    for file in ("tuned/loss.png", "tuned/log.jsonl"):
        assert (out / file).exists() and str(out / file) in shown
    assert (out / "exported" / "model.pdiparams").exists()
