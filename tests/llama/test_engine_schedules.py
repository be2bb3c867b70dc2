"""A request's tokens under any schedule: alone, in a full batch, after it lost its blocks, in parts, over a prefix.

First over `PrefixModel`, whose scores show every fault of the engine. Then over the exported program on the cpu
backend, bit by bit: that shows which op's result for a row depends on the other rows.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.generate.request import Request, SamplingSettings
from tests.llama.prefix_model import answer_alone, finish, letters, make_engine, step

CHOSEN = (
    SamplingSettings(temperature=0),
    SamplingSettings(temperature=1.5, seed=3),
    SamplingSettings(seed=4, top_p=0.8, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
    SamplingSettings(seed=5, top_k=5, min_p=0.05, logit_bias={3: 4.0}),
)
COMMON = tuple(token * 7 % 40 for token in range(40))  # prompts begin with a part of it


@st.composite
def requests(draw):
    """Prompts that share beginnings, some of whole blocks."""
    found = []
    for number in range(draw(st.integers(1, 7))):
        shared, own = draw(st.sampled_from([0, 3, 8, 16, 21, 40])), draw(st.integers(0, 9))
        prompt = (*COMMON[:shared], *((number + token) % 40 for token in range(own))) or (number,)
        found.append(
            Request(
                str(number),
                prompt,
                draw(st.sampled_from(CHOSEN)),
                draw(st.integers(1, 14)),
                eos_token_ids=draw(st.sampled_from([(), (3,), (5, 9, 11)])),
            )
        )
    return found


@st.composite
def schedules(draw):
    """(requests, when each comes, which are cancelled and when, what the engine may hold)."""
    asked = draw(requests())
    arrivals = [draw(st.integers(0, 12)) for _ in asked]
    cancelled = draw(st.dictionaries(st.sampled_from([one.id for one in asked]), st.integers(0, 25), max_size=2))
    block_size = draw(st.sampled_from([1, 4, 8]))
    longest = max(len(one.prompt) + one.max_new_tokens for one in asked)
    least = -(-longest // block_size)
    limits = {
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(0, 2 * least)),
        "max_rows": draw(st.integers(1, 5)),
        "max_tokens_per_step": draw(st.sampled_from([5, 7, 16, 64])),
        "reuse_prefixes": draw(st.booleans()),
    }
    return asked, arrivals, cancelled, limits


def run_schedule(engine, asked, arrivals, cancelled):
    """request id -> (tokens, text, finish reason); the engine's books are checked after every step."""
    answers = {}
    for now in range(max([*arrivals, *cancelled.values()], default=0) + 1):
        for request, arrival in zip(asked, arrivals, strict=True):
            if arrival == now:
                engine.add(request)
        for name, when in cancelled.items():
            if when == now:
                engine.cancel(name)
        step(engine, answers)
    return finish(engine, answers)


@given(schedules())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_schedule_changes_a_token(schedule):
    asked, arrivals, cancelled, limits = schedule
    engine = make_engine(**limits)
    answers = run_schedule(engine, asked, arrivals, cancelled)
    assert answers.keys() == {request.id for request in asked}
    for request in asked:
        tokens, text, reason = answers[request.id]
        alone = answer_alone(request, 256)
        if reason == "cancelled":
            assert request.id in cancelled and tokens == alone[: len(tokens)] and tokens != alone
        else:
            ended = alone[-1] in request.eos_token_ids
            assert (tokens, reason) == (alone, "stop" if ended else "length")
            assert text == letters(alone[: len(alone) - ended])
