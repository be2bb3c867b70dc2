"""The list of the best leaves out a plan only where a listed one of its kind is better or equal in time and memory."""

from __future__ import annotations

import json

from fusionkit_planner import dominance, search
from fusionkit_planner.layout import Layout
from fusionkit_planner.search import Plan
from fusionkit_planner.training_time import StepTime
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionkit.cli import main
from tests.planner.test_search import TRAIN, ask


def plan(seconds, gigabytes, **layout):
    return Plan(Layout(**layout), gigabytes * 1e9, StepTime(seconds, seconds, 0, 0, 0, 0))


def test_plans_of_a_kind_by_hand():
    """A faster one that needs more memory, another kind, and what differs in a degree that decides no product."""
    plans = [
        plan(1.0, 50, tensor=2, sharding=4, stage=2),
        plan(1.0, 50, tensor=2, sharding=4, stage=2, recompute="selective"),  # as good: the first stands for it
        plan(1.1, 60, tensor=2, data=4),
        plan(1.2, 60, tensor=4, data=2),  # another kind
        plan(1.25, 49.9, tensor=2, sharding=4, stage=1),  # slower, and needs hardly less
        plan(1.3, 40, tensor=2, sharding=4, stage=3),  # slower, and needs less
        plan(1.4, 45, tensor=2, sharding=4, stage=1),
        plan(1.5, 40, tensor=2, data=4, micro_batch=2),  # another kind
    ]
    assert dominance.dominators(plans) == [None, 0, 0, None, 0, None, 5, None]
    assert [place for place, _ in dominance.listed(plans, 3)] == [0, 3, 5]
    assert dominance.listed(plans, 9)[-1] == (7, plans[7]) and dominance.listed([], 3) == []


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([4, 6, 8]), st.floats(3e7, 2e8))
def test_a_plan_is_left_out_if_and_only_if_a_listed_one_replaces_it(devices, memory_bytes):
    plans = search.search(ask(devices, 24, memory_bytes)).plans
    free = [plan for _, plan in dominance.listed(plans, len(plans))]
    for other, by in zip(plans, dominance.dominators(plans), strict=True):
        better = [
            one
            for one in free
            if one is not other
            and (one.layout.tensor, one.layout.pipeline, one.layout.micro_batch)
            == (other.layout.tensor, other.layout.pipeline, other.layout.micro_batch)
            and one.rank < other.rank
            and 0.99 * one.needs_bytes < other.needs_bytes
        ]
        assert (by is not None) == bool(better) == (other not in free)


def test_the_table_the_reason_and_the_json_leave_out_the_same_plans(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main([*TRAIN, "--device", "h200", "--global-batch", "16", "--json", str(file)]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]
    found = json.loads(file.read_text())
    free = [place for place, each in enumerate(found["plans"], 1) if each["dominated_by"] is None]
    assert [int(line.split()[0]) for line in table] == free[:10] != list(range(1, 11))
    assert [place for place, each in enumerate(found["plans"], 1) if "memory" in each] == free[:10]
    first, second = (found["plans"][place - 1] for place in free[:2])
    gained = second["time"]["seconds"] / first["time"]["seconds"] - 1
    assert found["why"].startswith(f"The first is {gained:.1%} faster than the second")
    for each in found["plans"]:
        if (by := each["dominated_by"]) is not None:
            better = found["plans"][by - 1]
            assert better["dominated_by"] is None and 0.99 * better["needs_bytes"] < each["needs_bytes"]
            assert better["time"]["seconds"] <= each["time"]["seconds"]
