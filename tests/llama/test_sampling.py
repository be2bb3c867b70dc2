"""The choice of the next token, against NumPy's plain formulas."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import logits_process

from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate import sampling
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.generate.request import SamplingSettings

LOGITS = np.array([2.0, -1.0, 0.5, 1.5, -3.0], np.float32)


def settings(**changes):
    return GenerationSettings((2,), **{"top_p": 1.0, "temperature": 1.0, **changes})


def draws(count=20000, seen=(), logits=LOGITS, **changes):
    random, chosen = np.random.default_rng(3), settings(**changes).sampling(seed=0)
    tokens = [sampling.next_token(logits, chosen, seen, (), random) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def distribution(scores, chosen):
    """Of the whole vocabulary: 0 for tokens that are left out."""
    tokens, probabilities = sampling.distribution(scores, chosen)
    assert (np.diff(tokens) > 0).all()
    whole = np.zeros(scores.size)
    whole[tokens] = probabilities
    return whole


def softmax(scores):
    exponentials = np.exp(np.array(scores, np.float64))
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_scaled_scores(temperature):
    # Four standard deviations of a frequency over 20,000 draws: 4 * sqrt(0.25 / 20000) = 0.014.
    assert np.abs(draws(temperature=temperature) - softmax(LOGITS / temperature)).max() < 0.014


@pytest.mark.parametrize("top_p, kept", [(0.01, [0]), (0.5, [0]), (0.6, [0, 3]), (0.95, [0, 2, 3]), (1.0, range(5))])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_sum(top_p, kept):
    probabilities = softmax(LOGITS)
    order = np.argsort(-probabilities)
    needed = 1 + int(np.argmax(np.cumsum(probabilities[order]) >= top_p - 1e-12))
    assert set(order[:needed]) == set(kept)
    want = np.where(np.isin(np.arange(5), list(kept)), probabilities, 0)
    assert np.abs(draws(top_p=top_p) - want / want.sum()).max() < 0.014


def test_one_number_is_drawn_for_a_token_and_decides_it():
    for seed in range(20):
        token = sampling.next_token(LOGITS, SamplingSettings(), (), (), np.random.default_rng(seed))
        assert token == np.searchsorted(np.cumsum(softmax(LOGITS)), np.random.default_rng(seed).random())


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000])
def test_a_draw_is_where_the_running_sum_exceeds_the_number(size):
    random = np.random.default_rng(size)
    for zeros in (0.0, 0.5, 0.99):
        weights = np.where(random.random(size) < zeros, 0.0, random.random(size))
        weights[random.integers(size)] = 0.25
        exact = [Fraction(weight) for weight in weights]
        for number in (0.0, *random.random(30), np.nextafter(1.0, 0.0)):
            at, chosen = Fraction(number) * sum(exact), sampling.drawn(weights, number)
            before = sum(exact[:chosen])
            # Within float64's rounding of some hundred sums, and never a token without weight.
            assert weights[chosen] > 0 and before - at < 1e-11 and at - before - exact[chosen] < 1e-11


def test_repetition_penalty_lowers_seen_tokens_whatever_their_sign():
    got = sampling.penalized(LOGITS.astype(np.float64), 2.0, [0, 1, 1])
    np.testing.assert_array_equal(got, [1.0, -2.0, 0.5, 1.5, -3.0])
    greedy = SamplingSettings(temperature=0, repetition_penalty=2.0)
    for prompt, answer in (([0], []), ([], [0])):
        assert sampling.next_token(LOGITS, greedy, prompt, answer, np.random.default_rng(0)) == 3
    want = softmax(got)
    assert np.abs(draws(seen=[0, 1], repetition_penalty=2.0) - want).max() < 0.014


REFERENCES = {
    "top_k-1": {"top_k": 1},
    "top_k-3": {"top_k": 3},
    "top_k-all": {"top_k": 50},
    "min_p": {"min_p": 0.2},
    "min_p-1": {"min_p": 1.0},
    "top_k-then-top_p": {"top_k": 3, "top_p": 0.8},
    "all": {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
}


@pytest.mark.parametrize("changes", REFERENCES.values(), ids=REFERENCES)
def test_the_distribution_is_that_of_transformers(changes):
    random = np.random.default_rng(5)
    for scores in (LOGITS.astype(np.float64), random.normal(0, 3, 37), np.array([1.0, 2.0, 2.0, 2.0, 0.0])):
        got = distribution(scores, SamplingSettings(**changes))
        row = torch.from_numpy(scores)[None]
        for name, warper in WARPERS.items():
            if name in changes:
                row = warper(min(changes[name], len(scores)) if name == "top_k" else changes[name])(None, row)
        np.testing.assert_allclose(got / got.sum(), torch.softmax(row, -1)[0].numpy(), rtol=0, atol=1e-12)


WARPERS = {
    "temperature": logits_process.TemperatureLogitsWarper,
    "top_k": logits_process.TopKLogitsWarper,
    "top_p": logits_process.TopPLogitsWarper,
    "min_p": logits_process.MinPLogitsWarper,
}


def test_top_k_of_one_and_min_p_of_one_draw_the_highest():
    for changes in ({"top_k": 1}, {"min_p": 1.0}):
        np.testing.assert_array_equal(draws(count=50, **changes), [1, 0, 0, 0, 0])


@pytest.mark.parametrize("penalty", [1e-320, 1e-300, 0.5, 3.0, 1e300])
@pytest.mark.parametrize("temperature", [5e-324, 1.0, 1e300])
def test_a_token_of_the_vocabulary_comes_whatever_the_scores(penalty, temperature):
    largest = np.finfo(np.float32).max
    for scores in ([largest, -largest, 0, 1], [-largest] * 4, [largest] * 4, [0] * 4, [1e-45, -1e-45, 0, 1]):
        for chosen in (settings(repetition_penalty=penalty, temperature=temperature, top_p=0.9, top_k=2, min_p=0.1),
                       settings(repetition_penalty=penalty, decode_strategy="greedy_search")):  # fmt: skip
            random = np.random.default_rng(0)
            row = np.array(scores, np.float32), chosen.sampling(seed=0), [0, 1, 2], []
            tokens = [sampling.next_token(*row, random) for _ in range(20)]
            assert set(tokens) <= {0, 1, 2, 3}


def test_greedy_takes_the_first_of_the_highest():
    greedy = SamplingSettings(temperature=0)
    assert sampling.next_token(np.array([1, 7, 7], np.float32), greedy, [], [], np.random.default_rng(0)) == 1


@pytest.mark.parametrize("levels", [(1.0, 0.0), (0.1, 1e-3, 0.0), sampling.LEVELS])
def test_top_p_keeps_the_first_of_equal_tokens(monkeypatch, levels):
    monkeypatch.setattr(sampling, "LEVELS", levels)
    scores = np.round(np.random.default_rng(7).normal(0, 2, 300), 1)  # many equal ones
    probabilities = softmax(scores)
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    for top_p in (1e-9, 0.3, 0.5, 0.9, 0.999):
        got = distribution(scores, SamplingSettings(top_p=top_p))
        assert set(np.flatnonzero(got)) == set(order[before < top_p])
    assert np.count_nonzero(distribution(scores, SamplingSettings(top_p=1e-9))) == 1


def test_penalties_of_openai_count_the_answer_alone():
    answer = [3, 0, 3, 3]
    chosen = SamplingSettings(presence_penalty=0.5, frequency_penalty=0.25)
    got = sampling.changed(LOGITS.astype(np.float64), chosen, [1, 1, 2], answer)
    np.testing.assert_allclose(got, [2.0 - 0.75, -1.0, 0.5, 1.5 - 0.5 - 0.75, -3.0], rtol=0, atol=1e-15)


def test_bias_is_added_before_the_repetition_penalty_turns_with_the_sign():
    chosen = SamplingSettings(logit_bias={0: -3.0, 4: 100.0}, repetition_penalty=2.0)
    got = sampling.changed(LOGITS.astype(np.float64), chosen, [0, 4], [])
    np.testing.assert_array_equal(got, [-2.0, -1.0, 0.5, 1.5, 48.5])


def test_penalties_of_a_score_of_zero_and_of_the_largest_leave_a_choice():
    largest = float(np.finfo(np.float32).max)
    for penalty in (1e-320, 1e300):
        chosen = SamplingSettings(
            repetition_penalty=penalty, presence_penalty=2.0, frequency_penalty=-2.0, logit_bias={0: 100.0}
        )
        for scores in ([0.0, -0.0, 0.0, 0.0], [largest, -largest, 0.0, 1.0]):
            row = np.array(scores, np.float32), chosen, [0, 1], [2, 2]
            assert sampling.next_token(*row, np.random.default_rng(0)) in range(4)


def test_logprobs_are_those_of_the_scores_as_they_are():
    random = np.random.default_rng(2)
    logits = random.normal(0, 3, 77).astype(np.float32)
    want = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1)
    got = sampling.logprobs(logits, 5, 6)
    values, tokens = torch.topk(want, 6)
    assert got.token == 5 and abs(got.logprob - want[5].item()) < 1e-12
    assert [token for token, _ in got.top] == tokens.tolist()
    np.testing.assert_allclose([logprob for _, logprob in got.top], values.numpy(), rtol=0, atol=1e-12)
    assert sampling.logprobs(logits, 5, 0).top == () and len(sampling.logprobs(logits, 5, 100).top) == 77


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"temperature": -0.1}, "request: temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": 10**400}, "temperature must be at least 0, got 1000"),
        ({"logit_bias": {3: -(10**400)}}, "logit_bias must be of tokens"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": 1.5}, "top_k must be an integer"),
        ({"min_p": 2}, "min_p must be in"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": 2.1}, r"presence_penalty must be in \[-2, 2\]"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty must be in"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"logit_bias": {3: 101}}, r"logit_bias must be of tokens to numbers in \[-100, 100\]"),
        ({"logit_bias": {"3": 1}}, "logit_bias must be of tokens"),
        ({"num_logprobs": -1}, "num_logprobs must be"),
    ],
)
def test_impossible_settings_of_a_request_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        SamplingSettings(**changes)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0; --decode_strategy greedy_search is its limit, got 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be above 0"),
        ({"temperature": -1.0, "decode_strategy": "greedy_search"}, "temperature must be above 0"),
        ({"top_k": -1}, "top_k must be at least 0; 0 keeps every token, got -1"),
        ({"top_k": 2.0}, "top_k must be an integer, got 2.0"),
        ({"top_k": True}, "top_k must be an integer, got True"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\]"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\]"),
        ({"presence_penalty": 2.5}, r"presence_penalty must be in \[-2, 2\]; 0 changes nothing, got 2.5"),
        ({"frequency_penalty": "x"}, "frequency_penalty must be a number, got x"),
        ({"stop_strings": ("a", "")}, "stop_strings must be texts that are not empty"),
        ({"stop_strings": (3,)}, "stop_strings must be texts that are not empty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_length": -1}, "max_length must be at least 1, got -1"),
        ({"temperature": "hot"}, "temperature must be a number, got hot"),
        ({"temperature": 10**400}, "temperature must be finite, got 1000"),
        ({"decode_strategy": "beam_search"}, "decode_strategy must be sampling or greedy_search, got beam_search"),
    ],
)
def test_impossible_settings_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        settings(**changes)


@pytest.mark.parametrize("strategy", ["sampling", "greedy_search"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(strategy, name, value):
    with pytest.raises(ValueError, match=f"generation: {name} must be finite, got -?(nan|inf)"):
        settings(decode_strategy=strategy, **{name: value})


CONFIG = LlamaConfig(32, 16, 16, 1, 2, 64, 1e-5)


def read(folder, **fields):
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return GenerationSettings.from_pretrained(folder, CONFIG)


def test_greedy_uses_no_temperature(tmp_path):
    for fields in (
        {"temperature": 0.0},
        {"temperature": 0, "top_p": 0},
        {"temperature": None, "top_p": None, "top_k": None},
    ):
        assert read(tmp_path, do_sample=False, **fields).is_greedy
        with pytest.raises(ValueError, match="temperature must be above 0|top_p must be in"):
            read(tmp_path, do_sample=True, **{"temperature": 0.0, **{k: v for k, v in fields.items() if v is not None}})


def test_every_field_of_a_file_is_read_or_named_and_kept(tmp_path):
    used = {"top_k": 1, "min_p": 0.25, "max_new_tokens": 7, "max_length": 30, "repetition_penalty": 1.2}
    used |= {"presence_penalty": 0.5, "frequency_penalty": -0.5}
    named = {"num_beams": 4, "typical_p": 0.9, "no_repeat_ngram_size": 3, "suppress_tokens": [5], "mine": "x"}
    quiet = {
        "length_penalty": 1.0,
        "early_stopping": False,
        "max_time": None,
        "transformers_version": "5",
        "pad_token_id": 0,
    }
    found = read(tmp_path, do_sample=True, **used, **named, **quiet)
    assert {name: getattr(found, name) for name in used} == used
    want = 'num_beams 4, typical_p 0.9, no_repeat_ngram_size 3, suppress_tokens [5], mine "x"'
    assert found.without_effect == f"generation_config.json: without effect here: {want}"
    found.save(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written.items() >= (used | named | quiet).items()
    assert GenerationSettings.from_pretrained(tmp_path, CONFIG) == found


@pytest.mark.parametrize("stops, read_as", [("\n", ("\n",)), (["a", "b"], ("a", "b")), (None, ()), ([], ())])
def test_stop_strings_are_a_text_or_several(tmp_path, stops, read_as):
    found = read(tmp_path, stop_strings=stops)
    assert found.stop_strings == read_as and found.without_effect == ""
    found.save(tmp_path)
    assert GenerationSettings.from_pretrained(tmp_path, CONFIG) == found


@pytest.mark.parametrize("stops", [5, True, {"a": 1}, ["a", 5]])
def test_stop_strings_that_are_no_texts_are_named(tmp_path, stops):
    with pytest.raises(ValueError, match="stop_strings must be texts that are not empty, got "):
        read(tmp_path, stop_strings=stops)


@pytest.mark.parametrize("strategy", ["sampling", "greedy_search"])
def test_penalties_reach_the_request_whatever_the_strategy(strategy):
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -2.0}
    chosen = settings(decode_strategy=strategy, **penalties).sampling(seed=0)
    assert {name: getattr(chosen, name) for name in penalties} == penalties


def test_a_file_that_asks_for_nothing_else_names_nothing(tmp_path):
    assert read(tmp_path, do_sample=False, temperature=0.6, eos_token_id=2, num_beams=1, mine=None).without_effect == ""
    assert "mine 3" in read(tmp_path, mine=3).without_effect


def test_transformers_own_file_is_read(tmp_path):
    theirs = transformers.GenerationConfig(do_sample=True, top_k=3, min_p=0.1, max_new_tokens=5, eos_token_id=[2, 3])
    theirs.save_pretrained(tmp_path)
    found = GenerationSettings.from_pretrained(tmp_path, CONFIG)
    assert (found.top_k, found.min_p, found.max_new_tokens, found.eos_token_ids) == (3, 0.1, 5, (2, 3))
    assert found.without_effect == ""


def test_both_spellings_of_the_strategy_mean_one_thing(tmp_path):
    assert read(tmp_path, decode_strategy="greedy_search").is_greedy
    assert not read(tmp_path, decode_strategy="sampling", do_sample=True).is_greedy
    for fields, text in [
        ({"decode_strategy": "greedy_search", "do_sample": True}, "do_sample and decode_strategy must mean the same"),
        ({"decode_strategy": "beam_search"}, "decode_strategy must be sampling or greedy_search, got beam_search"),
        ({"do_sample": "false"}, "do_sample must be true or false"),
    ]:
        with pytest.raises(ValueError, match=f"generation_config.json: .*{text}"):
            read(tmp_path, **fields)


@pytest.mark.parametrize("token", [-1, 32, [2, 32]])
def test_an_end_token_that_cannot_come_is_refused(tmp_path, token):
    with pytest.raises(ValueError, match="eos_token_id must be at least 0 and below vocab_size 32, got (-1|32)"):
        read(tmp_path, eos_token_id=token)


def test_settings_of_a_folder_are_read_and_the_rest_are_defaults(tmp_path):
    config = CONFIG
    assert GenerationSettings.from_pretrained(tmp_path, config) == GenerationSettings((2,), "sampling", 0.7, 0.95, 1.0)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": [2, 7], "top_p": 0.9}')
    read = GenerationSettings.from_pretrained(tmp_path, config)
    assert read == GenerationSettings((2, 7), "greedy_search", 0.9, 0.95, 1.0)
    read.save(tmp_path)
    assert GenerationSettings.from_pretrained(tmp_path, config) == read
    for bad in ('{"top_p": "high"}', '{"eos_token_id": null}', "[]", "{"):
        (tmp_path / "generation_config.json").write_text(bad)
        with pytest.raises(ValueError, match="generation_config.json"):
            GenerationSettings.from_pretrained(tmp_path, config)
