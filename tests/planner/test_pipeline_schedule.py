"""A replayed pipeline takes what the schedules' formulas say, and computes in the published order."""

from __future__ import annotations

import pytest
from fusionkit_planner import pipeline_schedule
from fusionkit_planner.pipeline_schedule import Durations


@pytest.mark.parametrize(
    "stages, micro_batches, chunks",
    [(1, 3, 1), (2, 1, 1), (2, 8, 1), (4, 6, 1), (8, 24, 1), (2, 8, 2), (4, 4, 2), (4, 16, 3), (8, 24, 2)],
)
def test_even_stages_wait_for_the_known_bubble(stages, micro_batches, chunks):
    """Narayanan et al. 2021, section 2.2: (m + (p - 1) / v) (tf + tb) where m is a multiple of p."""
    each = Durations((1.0 / chunks,) * chunks, (2.0 / chunks,) * chunks)
    expected = (micro_batches + (stages - 1) / chunks) * 3.0
    assert pipeline_schedule.seconds([each] * stages, micro_batches) == pytest.approx(expected)


def test_the_slowest_stage_decides_a_long_step():
    """By hand: two micro-batches through 1 and 3 seconds; the last forward, each with a backward of the same."""
    fast, slow = Durations((1.0,), (1.0,)), Durations((3.0,), (3.0,))
    assert pipeline_schedule.seconds([fast, slow], 2) == 1 + 2 * 6 + 1
    assert pipeline_schedule.seconds([slow, fast], 2) == 3 + 3 + 3 + 3  # the fast one's passes are beside these
    assert pipeline_schedule.seconds([fast, slow], 2, send_seconds=0.5) == 1 + 0.5 + 2 * 6 + 0.5 + 1


@pytest.mark.parametrize("stages, chunks", [(2, 1), (3, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("micro_batches", [1, 7, 29, 64])
def test_a_long_step_is_what_its_whole_replay_takes(stages, chunks, micro_batches):
    uneven = [
        Durations(
            tuple(1.0 + 0.1 * stage + 0.01 * chunk for chunk in range(chunks)),
            tuple(2.0 - 0.3 * (stage == 1) for _ in range(chunks)),
        )
        for stage in range(stages)
    ]
    whole = max(span.end for span in pipeline_schedule.replay(uneven, micro_batches, 0.05))
    assert pipeline_schedule.seconds(uneven, micro_batches, 0.05) == pytest.approx(whole, rel=2e-3)


def told(stage, *sizes):
    """F and B are passes forward and backward, with the micro-batch; its second chunk has a mark."""
    return " ".join(
        f"{'BF'[one.is_forward]}{one.micro_batch}{chr(39) * one.chunk}"
        for one in pipeline_schedule.order(stage, *sizes)
    )


def test_the_order_of_a_stage_by_hand():
    """Narayanan et al. 2021, figure 4: two stages, of one chunk and then of two."""
    assert [told(stage, 2, 3, 1) for stage in range(2)] == ["F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"]
    assert [told(stage, 2, 4, 2) for stage in range(2)] == [
        "F0 F1 F0' F1' F2 B0' F3 B1' F2' B0 F3' B1 B2' B3' B2 B3",
        "F0 F1 F0' B0' F1' B1' F2 B0 F3 B1 F2' B2' F3' B3' B2 B3",
    ]


def test_passes_of_a_stage_do_not_overlap_and_follow_what_they_need():
    stages = [Durations((1.0, 1.5), (2.0, 2.5)), Durations((1.2, 0.7), (2.2, 1.9))]
    spans = pipeline_schedule.replay(stages, 5, 0.25)
    assert len(spans) == 2 * 2 * 5 * 2
    for stage in range(2):
        own = sorted((span.start, span.end) for span in spans if span.stage == stage)
        assert all(before[1] <= after[0] + 1e-9 for before, after in zip(own, own[1:], strict=False))
    found = {(span.stage, span.work.is_forward, span.work.micro_batch, span.work.chunk): span for span in spans}
    for number in range(5):
        assert found[1, True, number, 0].start >= found[0, True, number, 0].end + 0.25 - 1e-9
        assert found[0, True, number, 1].start >= found[1, True, number, 0].end + 0.25 - 1e-9
        assert found[0, False, number, 0].start >= found[1, False, number, 0].end + 0.25 - 1e-9


@pytest.mark.parametrize("micro_batches", [2, 6, 40])
def test_the_longest_path_adds_up_to_the_step(micro_batches):
    stages = [Durations((1.0, 1.5), (2.0, 2.5)), Durations((1.2, 0.7), (2.2, 1.9)), Durations((1.0, 1.1), (1.9, 3.0))]
    path = pipeline_schedule.longest_path(stages, micro_batches, 0.25)
    total = 0.25 * path.sends
    for (stage, chunk, is_forward), count in path.passes.items():
        total += count * (stages[stage].forward if is_forward else stages[stage].backward)[chunk]
    assert total == pytest.approx(pipeline_schedule.seconds(stages, micro_batches, 0.25))


def test_unequal_chunks_are_refused():
    with pytest.raises(ValueError, match="each with as many chunks"):
        pipeline_schedule.seconds([Durations((1.0,), (1.0,)), Durations((1.0, 1.0), (1.0, 1.0))], 2)
