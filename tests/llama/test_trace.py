"""--trace_steps: a Chrome trace of some steps, and their time in words."""

from __future__ import annotations

import json
import time

import pytest

from examples.llama2_13b.parallel import trace
from examples.llama2_13b.parallel.trace import BUBBLE, COMMUNICATION, COMPUTE, EXPOSED, Event, Trace
from examples.llama2_13b.sft import sft
from tests.llama.test_sft_processes import launched

# In the order in which they end, as they are noted. Of what is on its way one goes on within another.
EVENTS = [
    Event(COMMUNICATION, "matrices", 2.0, 3.0),
    Event(COMPUTE, "forward 0", 0.0, 4.0),
    Event(COMMUNICATION, "gradients", 1.0, 5.0),
    Event(COMMUNICATION, "gradients", 4.5, 6.0),
    Event(EXPOSED, "wait for gradients", 4.0, 7.0),
    Event(BUBBLE, "wait for a stage", 7.0, 8.0),
    Event(COMPUTE, "update", 8.0, 10.0),
]


def test_the_time_in_words():
    assert trace.in_words(EVENTS, "rank 0") == (
        "rank 0: 10 s, of which it computes for 60%, waits for other stages for 10% (bubbles), and for sums and new "
        "values for 30% (exposed communication). Something is on its way for 50%"
    )
    assert trace.in_words([], "rank 0") == "rank 0: nothing was traced"


def test_the_lanes_of_a_chrome_trace():
    ranks = [EVENTS, EVENTS[:3]]
    found = json.loads(trace.chrome(ranks, ["one", "two"]))["traceEvents"]
    names = {(event["pid"], event["args"]["name"]) for event in found if event["name"] == "process_name"}
    assert names == {(0, "one"), (1, "two")}
    lanes = {(event["pid"], event["tid"], event["args"]["name"]) for event in found if event["name"] == "thread_name"}
    assert lanes == {(rank, *lane) for rank in (0, 1) for lane in enumerate(("compute", "communication", "waiting"))}
    complete = [event for event in found if event["ph"] == "X"]
    shown = [tuple(event[name] for name in ("pid", "cat", "name", "ts", "dur")) for event in complete]
    assert shown == [
        (rank, event.lane, event.name, event.start * 1e6, (event.end - event.start) * 1e6)  # microseconds
        for rank, events in enumerate(ranks)
        for event in sorted(events, key=lambda event: event.start)
    ]
    assert {event["cat"]: event["tid"] for event in complete} == {COMPUTE: 0, COMMUNICATION: 1, BUBBLE: 2, EXPOSED: 2}


def test_nothing_is_noted_outside_of_a_trace():
    one = Trace()
    with one.span(COMPUTE, "before"):
        pass
    before = time.perf_counter()
    one.begin()
    with one.span(COMPUTE, "inside"):
        one.start(COMMUNICATION, "beside")()
    events = one.end()
    with one.span(COMPUTE, "after"):
        pass
    assert [event.name for event in events] == ["beside", "inside"] and not one.is_on
    assert trace.from_text(trace.to_text(events)) == events
    assert all(0 <= event.start <= event.end <= time.perf_counter() - before for event in events)  # since it began
    one.begin()
    assert one.end() == []


def test_a_run_writes_the_steps_asked_for(sft_flags, no_measuring, no_drawing, tmp_path, capsys):
    assert sft(sft_flags(max_steps=4, trace_steps="2-3", gradient_accumulation_steps=2)) == 0
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == COMPUTE]
    assert names == ["forward 0", "backward 0", "forward 1", "backward 1", "update"] * 2
    assert "rank 0, stage 0: " in capsys.readouterr().out
    assert "<h2>Timeline</h2>" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_goes_on_traces_what_is_left(sft_flags, no_measuring, no_drawing, tmp_path):
    assert sft(sft_flags(max_steps=3, save_steps=3)) == 0
    again = {"resume_from_checkpoint": "last", "output_dir": str(tmp_path / "run")}
    assert sft(sft_flags(max_steps=6, trace_steps="2-5", **again)) == 0
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event.get("cat") == COMPUTE].count("update") == 2


@pytest.mark.parametrize("value", ["3", "3-2", "0-1", "a-b"])
def test_other_steps_are_refused(sft_flags, value):
    with pytest.raises(ValueError, match="--trace_steps must be FIRST-LAST"):
        sft_flags(trace_steps=value)


def test_steps_beyond_the_run_are_refused(sft_flags, no_measuring):
    with pytest.raises(ValueError, match="--trace_steps must be within the steps of this run, of which there are 3"):
        sft(sft_flags(max_steps=3, warmup_steps=0, trace_steps="3-4"))


def test_two_stages_see_what_travels_and_what_they_wait_for(tiny_folder, few_samples, tmp_path):
    flags = {"dataset_name_or_path": few_samples, "pipeline_parallel_degree": 2, "gradient_accumulation_steps": 2}
    code, logs = launched(2, tmp_path / "out", tiny_folder, tmp_path / "log", trace_steps="2-2", **flags)
    assert code == 0, logs
    assert "rank 1, stage 1: " in logs
    found = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    for rank in range(2):
        lanes = {event["cat"] for event in found if event["ph"] == "X" and event["pid"] == rank}
        assert {COMPUTE, COMMUNICATION, BUBBLE} <= lanes
        computed = [event for event in found if event.get("cat") == COMPUTE and event["pid"] == rank]
        assert len(computed) == 5
        ends = [event["ts"] + event["dur"] for event in computed]
        assert all(end <= after["ts"] + 1 for end, after in zip(ends, computed[1:], strict=False))  # one at a time
