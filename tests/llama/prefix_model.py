"""A model for tests of the engine: its scores are a function of the tokens that it finds in the cache.

A token's key is the token itself. So a wrong block, a lost token or one too many changes every score.
"""

from __future__ import annotations

import hashlib

import numpy as np

from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.sampling import next_token

VOCAB_SIZE = 40
NO_TOKEN = -7


def scores_after(tokens):
    """float32 [VOCAB_SIZE]; some are equal, so that ties are met."""
    seed = hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).digest()
    draws = np.random.default_rng(int.from_bytes(seed[:8], "little")).normal(0, 2, VOCAB_SIZE)
    return np.round(draws, 1).astype(np.float32)


class PrefixCache:
    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.tokens = np.full((num_blocks, block_size), NO_TOKEN)


class PrefixModel:
    """A step. It keeps how many tokens each row brought, and what block each held."""

    def __init__(self):
        self.counts, self.tables = [], []

    def __call__(self, inputs, cache):
        size, first = cache.block_size, 0
        counts = inputs.seq_lens_this_time.tolist()
        self.counts.append(counts)
        self.tables.append([[block for block in row if block >= 0] for row in inputs.block_tables.tolist()])
        logits = []
        for count, prefill, start, table in zip(
            counts, inputs.seq_lens_encoder, inputs.seq_lens_decoder, inputs.block_tables, strict=True
        ):
            assert prefill == (count if start == 0 else 0)
            tokens = inputs.input_ids[first : first + count]
            positions = np.arange(start, start + count)
            np.testing.assert_array_equal(inputs.position_ids[first : first + count], positions)
            blocks = table[positions // size]
            assert (blocks >= 0).all()
            cache.tokens[blocks, positions % size] = tokens
            seen = np.arange(start + count)
            prefix = cache.tokens[table[seen // size], seen % size]
            assert NO_TOKEN not in prefix
            first += count
            logits.append(scores_after(prefix))
        assert inputs.last_tokens.tolist() == (np.cumsum(counts) - 1).tolist()
        return np.stack(logits)


def letters(tokens):
    """Token 0 is "a", token 26 is "A"."""
    return "".join(chr(ord("a") + token) if token < 26 else chr(ord("A") + token - 26) for token in tokens)


def make_engine(num_blocks=16, block_size=4, decode=letters, **limits):
    chosen = {"max_positions": 256, "vocab_size": VOCAB_SIZE, "max_rows": 4, "max_tokens_per_step": 32, **limits}
    return Engine(PrefixModel(), PrefixCache(num_blocks, block_size), decode, EngineLimits(**chosen))


def answer_alone(request, longest):
    """The tokens of the request, without an engine."""
    tokens, random = list(request.prompt), np.random.default_rng(request.settings.seed)
    start = len(tokens)
    most = start + (request.max_new_tokens or longest)
    while len(tokens) < min(longest, most):
        token = next_token(scores_after(tokens), request.settings, request.prompt, tokens[start:], random)
        tokens.append(token)
        if token in request.eos_token_ids and not request.ignore_eos:
            break
    return tuple(tokens[start:])


def step(engine, answers):
    """One step; adds its news to answers: request id -> (tokens, text, finish reason)."""
    deltas = engine.step()
    engine.check()
    assert len({delta.request_id for delta in deltas}) == len(deltas)
    for delta in deltas:
        tokens, text, reason = answers.get(delta.request_id, ((), "", None))
        assert reason is None, f"{delta} after the end"
        answers[delta.request_id] = tokens + delta.tokens, text + delta.text, delta.finish_reason
    return deltas


def finish(engine, answers=None, most_steps=1000):
    """Steps until nothing is left to do; all blocks are free then."""
    answers = {} if answers is None else answers
    for _ in range(most_steps):
        if not engine.has_work:
            break
        step(engine, answers)
    assert not engine.has_work
    assert engine.stats.free_blocks == engine.stats.total_blocks
    return answers
