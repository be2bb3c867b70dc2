"""The choice of the next token, against NumPy's plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from examples.llama2_13b import sampling
from examples.llama2_13b.config import LlamaConfig
from examples.llama2_13b.generation_settings import GenerationSettings

LOGITS = np.array([2.0, -1.0, 0.5, 1.5, -3.0], np.float32)


def settings(**changes):
    return GenerationSettings((2,), **{"top_p": 1.0, "temperature": 1.0, **changes})


def draws(count=20000, seen=(), logits=LOGITS, **changes):
    random, chosen = np.random.default_rng(3), settings(**changes)
    tokens = [sampling.next_token(logits, chosen, seen, random) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


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
        token = sampling.next_token(LOGITS, settings(), (), np.random.default_rng(seed))
        assert token == np.searchsorted(np.cumsum(softmax(LOGITS)), np.random.default_rng(seed).random())


def test_repetition_penalty_lowers_seen_tokens_whatever_their_sign():
    got = sampling.penalized(LOGITS.astype(np.float64), 2.0, [0, 1, 1])
    np.testing.assert_array_equal(got, [1.0, -2.0, 0.5, 1.5, -3.0])
    greedy = settings(decode_strategy="greedy_search", repetition_penalty=2.0)
    assert sampling.next_token(LOGITS, greedy, [0], np.random.default_rng(0)) == 3
    want = softmax(got)
    assert np.abs(draws(seen=[0, 1], repetition_penalty=2.0) - want).max() < 0.014


def test_greedy_takes_the_first_of_the_highest():
    greedy = settings(decode_strategy="greedy_search")
    assert sampling.next_token(np.array([1, 7, 7], np.float32), greedy, [], np.random.default_rng(0)) == 1


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match="scores must be finite"):
        sampling.next_token(np.array([1, np.nan], np.float32), settings(), [], np.random.default_rng(0))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0; --decode_strategy greedy_search is its limit, got 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be above 0"),
        ({"decode_strategy": "beam_search"}, "decode_strategy must be sampling or greedy_search, got beam_search"),
    ],
)
def test_impossible_settings_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        settings(**changes)


def test_settings_of_a_folder_are_read_and_the_rest_are_defaults(tmp_path):
    config = LlamaConfig(32, 16, 16, 1, 2, 64, 1e-5)
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
