"""Greedy decoding through the exported program against the full model, computed anew for every token."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import paddle
import pytest

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Request, SamplingSettings
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.model import Llama

MAX_LENGTH = 12
LENGTHS = (1, 17, 5, 33, 2)  # with blocks of 16: one, over one block, over two


@pytest.fixture(scope="session")
def prompts():
    random = np.random.default_rng(5)
    return [random.integers(3, 512, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="session")
def exported(tiny_folder, tmp_path_factory):
    """dtype -> (config, program)"""
    config = LlamaConfig.from_json(tiny_folder / "config.json")
    programs = {}
    for dtype in ("float32", "bfloat16", "float16"):
        folder = tmp_path_factory.mktemp("exported") / dtype
        export(ExportFlags(str(tiny_folder), str(folder), dtype))
        programs[dtype] = StaticProgram(folder, config)
    return config, programs


class Recorded:
    """A step that keeps the logits of each call, and how many tokens each row brought."""

    def __init__(self, step):
        self.step, self.logits, self.counts = step, [], []

    def __call__(self, inputs, cache):
        self.logits.append(self.step(inputs, cache))
        self.counts.append(inputs.seq_lens_this_time.tolist())
        return self.logits[-1]


class Answering:
    """An engine that answers a list of prompts greedily, with its step recorded."""

    def __init__(self, exported, dtype="float32", eos=(2,), batch_size=2, num_blocks=None, block_size=16, **settings):
        config, programs = exported
        cache = KeyValueCache(config, dtype, num_blocks or batch_size * 4, block_size)
        limits = EngineLimits(config.max_position_embeddings, config.vocab_size, batch_size)
        self.step = Recorded(programs[dtype])
        self.engine = Engine(self.step, cache, str, limits)
        self._eos, self._settings = eos, {"temperature": 0, **settings}

    def run(self, prompts, seeds=None):
        """(number of the prompt, its answer without end token), in the order in which they end."""
        for number, prompt in enumerate(prompts):
            chosen = SamplingSettings(**self._settings, seed=number if seeds is None else seeds[number])
            self.engine.add(Request(str(number), tuple(prompt), chosen, MAX_LENGTH, eos_token_ids=self._eos))
        answers = [[] for _ in prompts]
        while self.engine.has_work:
            for delta in self.engine.step():
                answers[int(delta.request_id)] += [token for token in delta.tokens if token not in self._eos]
                if delta.finish_reason:
                    yield int(delta.request_id), answers[int(delta.request_id)]


@pytest.fixture(scope="session")
def recomputed(tiny_folder, prompts):
    """For each prompt the tokens of the full model, and the logits that each was chosen from."""
    model = Llama.from_pretrained(tiny_folder)
    answers = []
    with paddle.no_grad():
        for prompt in prompts:
            tokens, scores = list(prompt), []
            for _ in range(MAX_LENGTH):
                scores.append(model(paddle.to_tensor([tokens]))[0, -1].numpy())
                tokens.append(int(scores[-1].argmax()))
            answers.append((tokens[len(prompt) :], np.array(scores)))
    return answers


@pytest.mark.parametrize("batch_size, block_size", [(1, 64), (2, 16), (5, 16), (3, 1)])
def test_every_token_is_the_full_models(exported, prompts, recomputed, batch_size, block_size):
    answering = Answering(exported, eos=(), batch_size=batch_size, block_size=block_size, num_blocks=400 // block_size)
    assert dict(answering.run(prompts)) == {number: tokens for number, (tokens, _) in enumerate(recomputed)}


def test_logits_are_the_full_models(exported, prompts, recomputed):
    answering = Answering(exported, eos=(), batch_size=1)
    list(answering.run(prompts))
    got = np.concatenate(answering.step.logits)
    want = np.concatenate([scores for _, scores in recomputed])
    # Sums of other orders: 100 epsilons of the largest logit.
    assert np.abs(got - want).max() < 100 * np.finfo(np.float32).eps * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_program_is_as_near_to_float32_as_the_narrow_model(tiny_folder, exported, prompts, dtype):
    logits = {}
    for each in ("float32", dtype):
        answering = Answering(exported, dtype=each, eos=(), batch_size=5)
        list(answering.run(prompts))
        logits[each] = answering.step.logits[0]
    with paddle.no_grad():
        model = Llama.from_pretrained(tiny_folder, dtype)
        of_model = np.stack([model(paddle.to_tensor([prompt]))[0, -1].numpy() for prompt in prompts])
    allowed = 2 * np.abs(of_model - logits["float32"]).max()
    assert 0 < np.abs(logits[dtype] - logits["float32"]).max() <= allowed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_program_of_a_tied_model_holds_one_matrix_and_gives_its_logits(tiny_folder, tmp_path, prompts, dtype):
    folder, output = shutil.copytree(tiny_folder, tmp_path / "model"), tmp_path / "exported"
    config = dataclasses.replace(LlamaConfig.from_json(tiny_folder / "config.json"), tie_word_embeddings=True)
    paddle.seed(0)
    Llama(config).save_pretrained(folder)
    export(ExportFlags(str(folder), str(output), dtype))
    matrix = config.vocab_size * config.hidden_size * (4 if dtype == "float32" else 2)
    export(ExportFlags(str(tiny_folder), str(tmp_path / "untied"), dtype))
    untied, tied = ((path / "model.pdiparams").stat().st_size for path in (tmp_path / "untied", output))
    assert matrix <= untied - tied < matrix + 1000
    answering = Answering((config, {dtype: StaticProgram(output, config)}), dtype, eos=(), batch_size=5)
    list(answering.run(prompts))
    with paddle.no_grad():
        exact, of_model = (
            np.stack([model(paddle.to_tensor([prompt]))[0, -1].numpy() for prompt in prompts])
            for model in (Llama.from_pretrained(folder, each) for each in ("float32", dtype))
        )
    rounding = 100 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(answering.step.logits[0] - exact).max() <= 2 * np.abs(of_model - exact).max() + rounding


def test_a_prompt_enters_when_a_row_ends_while_the_others_go_on(exported, prompts, recomputed):
    tokens = recomputed[0][0]
    end = next(token for token in tokens[1:] if token not in tokens[:1])
    position = tokens.index(end)
    answering = Answering(exported, eos=(end,), batch_size=2)
    answers = dict(answering.run(prompts))
    for number, (full, _) in enumerate(recomputed):
        assert answers[number] == (full[: full.index(end)] if end in full else full)
    inserted = answering.step.counts[position + 1]
    assert inserted == [1, LENGTHS[2]]  # row 1 in decode, prompt 2 in prefill, in one step
    assert all(len(counts) == 2 for counts in answering.step.counts[: position + 2])


def test_prompts_wait_until_blocks_are_free(exported, prompts, recomputed):
    answering = Answering(exported, eos=(), batch_size=5, num_blocks=3)  # 33 + 12 tokens need 3 blocks of 16
    assert dict(answering.run(prompts)) == {number: tokens for number, (tokens, _) in enumerate(recomputed)}
    assert answering.engine.stats.generated_tokens == len(prompts) * MAX_LENGTH


def test_an_answer_ends_where_the_cache_ends(exported, prompts, recomputed):
    answering = Answering(exported, eos=(), num_blocks=5, block_size=4)
    ((_, tokens),) = answering.run([prompts[1]])
    assert tokens == recomputed[1][0][:3]  # 17 + 3 tokens are five blocks of 4


def test_samples_depend_on_the_seed_and_not_on_the_batch(exported, prompts):
    def answers(batch_size, seeds):
        answering = Answering(exported, batch_size=batch_size, temperature=1.0)
        return dict(answering.run([prompts[1]] * 3, seeds))

    first = answers(3, [1, 2, 3])
    assert first == answers(3, [1, 2, 3]) == answers(1, [1, 2, 3])
    assert answers(3, [3, 2, 1]) == {0: first[2], 1: first[1], 2: first[0]}
    assert first[0] != first[1]


def test_a_step_holds_new_rows_whole_and_the_others_last_token():
    inputs = collate([Part([7], 2, [4]), Part([8, 9], 0, [0, 3]), Part([5, 6], 4, [1, 2])])
    assert inputs.input_ids.tolist() == [7, 8, 9, 5, 6]
    assert inputs.position_ids.tolist() == [2, 0, 1, 4, 5]
    assert inputs.last_tokens.tolist() == [0, 2, 4]
    assert inputs.seq_lens_encoder.tolist() == [0, 2, 0]
    assert inputs.seq_lens_decoder.tolist() == [2, 0, 4]
    assert inputs.seq_lens_this_time.tolist() == [1, 2, 2]
    assert inputs.block_tables.tolist() == [[4, -1], [0, 3], [1, 2]]


def test_a_block_table_that_is_wider_than_needed_changes_nothing(exported):
    config, programs = exported
    logits = []
    for width in (2, 7):
        cache = KeyValueCache(config, "float32", 8, 4)
        for start, tokens in ((0, [5, 6, 7, 8, 9]), (5, [10])):
            inputs = collate([Part(tokens, start, [6, 1]), Part([3], start // 5, [4])])
            tables = np.full((2, width), -1, np.int32)
            tables[:, : inputs.block_tables.shape[1]] = inputs.block_tables
            tables[1, 2:] = 6  # of another row, and not this one's to read
            logits.append(programs["float32"](dataclasses.replace(inputs, block_tables=tables), cache))
    np.testing.assert_array_equal(logits[:2], logits[2:])
