"""`plan train --verify` of devices that are not here: emulated ones account each rank's memory, and run out of it."""

from __future__ import annotations

import sys

import pytest
from fusionkit_planner import architecture, known_rates, search
from fusionkit_planner.search import Question
from fusionkit_planner.verify import commands, report, run
from fusionkit_planner.verify.commands import Launch
from fusionkit_planner.verify.place import Place

from examples.llama2_13b.create import CreateFlags, create
from tests.launch import LAUNCH
from tests.llama.conftest import DATA, EXAMPLE

CONFIG = EXAMPLE / "configs" / "tiny_n1c8.json"
DEVICES = Place("npu", "910B-64GB", True)
STATE_BYTES = 16  # of a parameter: itself, its gradient and two moments in float32


@pytest.fixture(scope="module")
def answer():
    rates = known_rates.find("910b", [])
    return search.search(Question(architecture.read(CONFIG), rates, 1, 2, 32, 64e9))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    create(CreateFlags(str(CONFIG), str(DATA), str(folder), weights=False))
    return folder


@pytest.mark.parametrize("memory_bytes", [64e9, 1e6], ids=["enough", "too_little"])
def test_memory_is_accounted_or_runs_out_at_a_line(answer, model, memory_bytes, monkeypatch):
    monkeypatch.setattr(commands, "LAUNCH", (sys.executable, LAUNCH))
    wanted = run.Wanted(model, None, EXAMPLE / "sft.py", Launch(DEVICES, 1, memory_bytes), 2, 1200)
    found = run.verify(answer, run.chosen(answer.plans, 1), wanted, lambda *_: None, lambda _: None)
    (one,) = found.runs
    text = report.text(answer.question, DEVICES, found)
    assert one.seconds is None and "no time is measured" in text
    if memory_bytes == 1e6:
        assert "rank 0 is out of memory: 0.000" in one.reason and "llama.py:" in one.reason
        assert found.best is None and one.reason in text
    else:
        state = STATE_BYTES * answer.question.architecture.parameters
        assert not one.reason and state < one.peaks[0] < 3 * state
        assert found.correction.memory == pytest.approx(
            one.peaks[0] / search.peak(answer.question, one.plan.layout).peak
        )
        assert found.order[0][0] is one.plan and f"simulated x {found.correction.memory:.3f}" in text
