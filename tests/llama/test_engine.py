"""The engine: requests enter and leave between steps. The scores are those of `PrefixModel`."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from examples.llama2_13b.generate.engine import EngineLimits
from examples.llama2_13b.generate.request import Request, SamplingSettings
from tests.llama.prefix_model import answer_alone, finish, letters, make_engine, scores_after, step

GREEDY = SamplingSettings(temperature=0)


def request(name, prompt, most=8, settings=GREEDY, **changes):
    return Request(name, tuple(prompt), settings, most, **changes)


def test_requests_enter_between_steps_and_all_are_answered():
    engine, answers = make_engine(), {}
    requests = [request(name, range(3 + number), 6 - number) for number, name in enumerate("abcde")]
    for each in requests:
        engine.add(each)
        step(engine, answers)
    finish(engine, answers)
    for each in requests:
        tokens = answer_alone(each, 64)
        assert answers[each.id] == (tokens, letters(tokens), "length")
    assert engine.stats.generated_tokens == sum(len(tokens) for tokens, _, _ in answers.values())
    assert engine.stats.prompt_tokens == sum(range(3, 8))


@pytest.mark.parametrize(
    "request_, text",
    [
        (request("a", ()), "request a: prompt must be at least one token long, got 0"),
        (
            request("a", [1] * 256),
            "prompt must be shorter than 256 positions of the model and 64 of the cache, got 256",
        ),
        (request("a", [1] * 64), "prompt must be shorter than 256 positions .* and 64 of the cache, got 64"),
        (request("a", [1, 40]), r"prompt must be of tokens below vocab_size 40, got \[40\]"),
        (request("a", [1], settings=SamplingSettings(logit_bias={40: 1.0})), "logit_bias must be of tokens below"),
        (request("taken", [1]), "id must be of no other request that is under way, got taken"),
    ],
)
def test_what_can_never_run_is_refused_by_name(request_, text):
    engine = make_engine()
    engine.add(request("taken", [1]))
    with pytest.raises(ValueError, match=text):
        engine.add(request_)
    assert finish(engine).keys() == {"taken"}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"prompt": (1, -1)}, "request a: prompt must be of integers that are at least 0"),
        ({"prompt": (1.0,)}, "prompt must be of integers"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, or None, got 0"),
        ({"stop": ("x", "")}, "stop must be of texts that are not empty"),
    ],
)
def test_an_impossible_request_is_refused_where_it_is_made(changes, text):
    with pytest.raises(ValueError, match=text):
        Request(**{"id": "a", "prompt": (1,), **changes})


def test_limits_that_cannot_hold_a_row_are_refused():
    with pytest.raises(ValueError, match="max_tokens_per_step must be at least max_rows 8, a token each, got 7"):
        EngineLimits(10, 10, max_rows=8, max_tokens_per_step=7)
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        EngineLimits(10, 10, max_rows=0)


def test_an_id_is_free_again_when_its_request_has_ended():
    engine = make_engine()
    engine.add(request("a", [1], 2))
    finish(engine)
    engine.add(request("a", [2], 3))
    assert len(finish(engine)["a"][0]) == 3


@pytest.mark.parametrize("length", range(1, 13))
@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_a_row_has_the_blocks_that_its_tokens_need_and_no_more(length, most):
    engine = make_engine(num_blocks=5)
    engine.add(request("a", range(length), most))
    ((tokens, _, reason),) = finish(engine).values()
    assert (len(tokens), reason) == (most, "length")
    for number, (table,) in enumerate(engine._step.tables):
        assert len(table) == -(-(length + number) // 4)


@pytest.mark.parametrize("length", [11, 12, 13, 15])
def test_an_answer_ends_where_the_cache_ends(length):
    engine = make_engine(num_blocks=4)
    engine.add(request("a", range(length), None))
    ((tokens, _, reason),) = finish(engine).values()
    assert (length + len(tokens), reason) == (16, "length")


def test_an_answer_ends_where_the_models_positions_end():
    engine = make_engine(max_positions=10)
    engine.add(request("a", range(7), None))
    assert len(finish(engine)["a"][0]) == 3


def test_a_long_prompt_is_computed_in_parts_while_others_get_a_token_each_step():
    engine, answers = make_engine(num_blocks=40, max_tokens_per_step=8, max_rows=3), {}
    engine.add(request("a", [1, 2], 20))
    engine.add(request("b", [3, 4], 20))
    step(engine, answers)
    engine.add(request("long", [token % 30 for token in range(61)], 3))
    while "long" not in answers:
        assert [delta.request_id for delta in step(engine, answers)][:2] == ["a", "b"]
        assert sum(engine._step.counts[-1]) <= 8
    assert [counts[2] for counts in engine._step.counts[1:]] == [6] * 10 + [1]
    finish(engine, answers)
    assert answers["long"][0] == answer_alone(request("long", [token % 30 for token in range(61)], 3), 256)


def test_the_row_that_came_last_gives_its_blocks_to_the_first_and_answers_as_if_it_had_not():
    sampled = SamplingSettings(seed=5, frequency_penalty=0.5, repetition_penalty=1.2)
    requests = [request(name, range(6), 20, sampled) for name in "abc"]
    engine = make_engine(num_blocks=9, reuse_prefixes=False)
    for each in requests:
        engine.add(each)
    answers = finish(engine)
    assert engine.stats.preemptions >= 2
    assert [counts[-1] for counts in engine._step.counts if counts[-1] > 1][1:] != [6]  # more than the prompt again
    for each in requests:
        assert answers[each.id][0] == answer_alone(each, 36)
    assert list(answers) == ["a", "b", "c"]


def test_the_first_row_gets_a_token_in_each_step_and_one_that_lost_its_blocks_comes_before_later_ones():
    engine, ends = make_engine(num_blocks=6, max_rows=2, reuse_prefixes=False), []
    for number, name in enumerate(("first", "second", "third", "fourth")):
        engine.add(request(name, range(number, number + 7), 11))
    while engine.has_work:
        deltas = engine.step()
        if "first" not in ends:
            assert deltas[0].request_id == "first"
        ends += [delta.request_id for delta in deltas if delta.finish_reason]
    assert engine.stats.preemptions >= 2
    assert ends == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("length", [4, 8, 12])
def test_a_row_whose_prompt_fills_its_blocks_comes_back_after_it_lost_them(length):
    """With prefix reuse its whole prompt is in the cache; one token is computed again all the same."""
    requests = [request("first", range(4), 12), request("second", range(10, 10 + length), 8)]
    engine = make_engine(num_blocks=5, max_rows=2)
    for each in requests:
        engine.add(each)
    answers = finish(engine, most_steps=60)
    assert engine.stats.preemptions >= 1
    for each in requests:
        assert answers[each.id][0] == answer_alone(each, 20)


def test_a_cancelled_request_says_so_and_gives_its_blocks_back():
    engine, answers = make_engine(max_rows=2), {}
    for name in ("runs", "stays", "waits"):
        engine.add(request(name, range(5)))
    step(engine, answers)
    assert engine.cancel("runs") and engine.cancel("waits") and not engine.cancel("nobody")
    with pytest.raises(ValueError, match="id must be of no other request"):
        engine.add(request("runs", [1]))
    engine.check()
    finish(engine, answers)
    assert {name: reason for name, (_, _, reason) in answers.items()} == {
        "runs": "cancelled",
        "waits": "cancelled",
        "stays": "length",
    }
    assert not engine.cancel("runs")


def test_a_request_is_cancelled_while_it_waits_for_the_blocks_that_it_lost():
    engine, answers = make_engine(num_blocks=5, max_rows=2), {}
    engine.add(request("first", range(6), 10))
    engine.add(request("second", range(20, 27), 10))
    while engine.stats.preemptions == 0:
        step(engine, answers)
    assert engine.stats.running == 1 and engine.cancel("second")
    engine.check()
    finish(engine, answers)
    assert answers["second"][2] == "cancelled" and answers["first"][2] == "length"


def test_nothing_to_do_is_no_step():
    engine = make_engine()
    assert not engine.has_work and engine.step() == [] and engine.stats.steps == 0
    engine.add(request("a", [1]))
    engine.cancel("a")
    assert engine.has_work and [delta.finish_reason for delta in engine.step()] == ["cancelled"]
    assert not engine.has_work and engine.stats.steps == 0


def test_a_prefix_in_the_cache_is_computed_once():
    engine = make_engine(num_blocks=16, max_tokens_per_step=64)
    prompt = tuple(range(21))
    engine.add(request("a", prompt, 1))
    finish(engine)
    engine.add(request("same", prompt, 1))
    engine.add(request("longer", (*prompt, 30, 31, 32, 33), 1))
    engine.add(request("other", (39, *prompt[1:]), 1))
    answers = finish(engine)
    assert engine._step.counts[-1] == [1, 5, 21]
    assert engine.stats.prefix_hit_tokens == 40
    for each in ("same", "longer", "other"):
        asked = {"same": prompt, "longer": (*prompt, 30, 31, 32, 33), "other": (39, *prompt[1:])}[each]
        assert answers[each][0] == answer_alone(request(each, asked, 1), 64)


def test_an_answer_is_reused_by_the_next_turn():
    engine = make_engine()
    engine.add(request("a", range(6), 7))
    tokens = finish(engine)["a"][0]
    engine.add(request("b", (*range(6), *tokens, 5), 2))
    finish(engine)
    assert engine.stats.prefix_hit_tokens == 12  # of 13 tokens whose keys were computed


def test_two_rows_share_blocks_and_one_that_leaves_takes_none_with_it():
    engine, answers = make_engine(num_blocks=8), {}
    engine.add(request("a", range(9), 12))
    step(engine, answers)
    engine.add(request("b", range(9), 12))
    step(engine, answers)
    assert engine._step.tables[-1][0][:2] == engine._step.tables[-1][1][:2]
    assert engine.stats.free_blocks == 8 - 4
    engine.cancel("a")
    finish(engine, answers)
    assert answers["b"][0] == answer_alone(request("b", range(9), 12), 32)


def test_a_block_that_was_taken_again_is_found_no_more():
    engine = make_engine(num_blocks=4)
    for name, prompt in (("a", range(12)), ("b", range(20, 35)), ("again", range(12))):
        engine.add(request(name, prompt, 1))
        assert finish(engine)[name][0] == answer_alone(request(name, prompt, 1), 16)
    assert engine.stats.prefix_hit_tokens == 0


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_answer_ends_with_any_of_its_end_tokens_unless_they_are_to_be_ignored(ignore_eos):
    whole = answer_alone(request("a", [1, 2], 12), 64)
    ends = (whole[7], whole[4], 1)  # 1 is in the prompt, where it ends nothing
    first = min(whole.index(end) for end in ends if end in whole)
    engine = make_engine()
    engine.add(request("a", [1, 2], 12, eos_token_ids=ends, ignore_eos=ignore_eos))
    want = whole if ignore_eos else whole[: first + 1]
    text = letters(whole) if ignore_eos else letters(whole[:first])
    assert finish(engine) == {"a": (want, text, "length" if ignore_eos else "stop")}


def test_a_stop_string_may_cross_tokens_and_ends_the_text_before_it():
    whole = answer_alone(request("a", [1, 2], 12), 64)
    text = letters(whole)
    stop = text[3:6]
    at = text.index(stop)
    engine, pieces = make_engine(), []
    engine.add(request("a", [1, 2], 12, stop=("not there", stop)))
    while engine.has_work:
        pieces += engine.step()
    assert "".join(piece.text for piece in pieces) == text[:at]
    assert pieces[-1].finish_reason == "stop" and engine.stats.free_blocks == 16
    assert sum(len(piece.tokens) for piece in pieces) == at + 3


def test_text_that_waited_for_a_stop_string_comes_with_the_end():
    whole = answer_alone(request("a", [1, 2], 5), 64)
    text = letters(whole)
    engine, pieces = make_engine(), []
    engine.add(request("a", [1, 2], 5, stop=(text[3:] + "!",)))
    while engine.has_work:
        pieces += engine.step()
    assert [piece.text for piece in pieces] == [*text[:3], "", text[3:]]
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize("reason, ends", [("stop", True), ("length", False)])
def test_an_answer_that_ends_inside_a_character_shows_what_the_decoder_makes_of_it(reason, ends):
    def in_bytes(tokens):
        return bytes([0xE2] * len(tokens)).decode(errors="replace")

    whole = answer_alone(request("a", [1, 2], 3), 64)
    engine = make_engine(decode=in_bytes)
    engine.add(request("a", [1, 2], 3, eos_token_ids=(whole[-1],) if ends else ()))
    answers = finish(engine)
    assert answers["a"] == (whole, "\N{REPLACEMENT CHARACTER}" * (2 if ends else 3), reason)


def test_tokens_without_a_text_are_tokens_all_the_same():
    """A vocabulary may be padded beyond the tokenizer."""
    engine = make_engine(decode=lambda tokens: letters([token for token in tokens if token < 5]))
    engine.add(request("a", [1, 2], 12, settings=SamplingSettings(logit_bias={39: 100.0})))
    ((tokens, text, _),) = finish(engine).values()
    assert tokens == (39,) * 12 and text == ""


def test_logprobs_come_with_each_token_for_those_who_ask():
    engine, deltas = make_engine(), []
    engine.add(request("a", [1, 2], 4, settings=SamplingSettings(temperature=0, num_logprobs=2, logit_bias={7: 100.0})))
    engine.add(request("b", [1, 2], 4))
    while engine.has_work:
        deltas += engine.step()
    assert all(not delta.logprobs for delta in deltas if delta.request_id == "b")
    tokens = [1, 2]
    for delta in deltas:
        if delta.request_id == "a":
            (told,) = delta.logprobs
            scores = scores_after(tokens).astype(np.float64)
            want = scores - np.log(np.exp(scores).sum())
            assert told.token == 7 and abs(told.logprob - want[7]) < 1e-12
            assert told.top[0][0] == scores.argmax() and abs(told.top[0][1] - want.max()) < 1e-12
            tokens.append(7)


def test_scores_that_are_not_finite_end_their_request_and_no_other():
    engine = make_engine()
    model = engine._step

    def broken(inputs, cache):
        logits = model(inputs, cache)
        logits[inputs.position_ids[inputs.last_tokens] == 6, 3] = np.nan
        return logits

    engine._step = broken
    engine.add(request("long", range(5), 6))
    engine.add(request("short", range(2), 3))
    answers = finish(engine)
    assert (len(answers["long"][0]), answers["long"][2]) == (2, "error")
    assert (len(answers["short"][0]), answers["short"][2]) == (3, "length")


def test_a_step_that_fails_may_be_tried_again():
    engine, answers = make_engine(), {}
    model = engine._step
    failures = iter([False, True, False, True, True])

    def fails(inputs, cache):
        logits = model(inputs, cache)
        if next(failures, False):
            raise MemoryError
        return logits

    engine._step = fails
    requests = [request(name, range(5), 6) for name in "ab"]
    for each in requests:
        engine.add(each)
    for _ in range(30):
        try:
            step(engine, answers)
        except MemoryError:
            engine.check()
    for each in requests:
        assert answers[each.id][0] == answer_alone(each, 64)


def test_requests_that_have_ended_leave_nothing_behind():
    """Whatever was reused, preempted or cancelled: a server runs for months."""
    engine, random = make_engine(num_blocks=12), np.random.default_rng(1)

    def answer(count):
        for number in range(count):
            prompt = (1, 2, 3, 4, 5, 6, 7, 8) * random.integers(0, 2) + tuple(random.integers(3, 9, 5).tolist())
            engine.add(Request(str(number), prompt, SamplingSettings(seed=number), max_new_tokens=9))
            if number % 7 == 0:
                engine.cancel(str(number))
            if number % 5 == 4:
                finish(engine)
        finish(engine)
        engine._step.counts.clear()  # the model of these tests keeps them
        engine._step.tables.clear()
        gc.collect()
        return len(gc.get_objects())

    answer(100)
    assert engine.stats.preemptions and engine.stats.prefix_hit_tokens
    before = answer(100)
    assert answer(500) - before < 20
