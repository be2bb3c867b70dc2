"""Every way to lay out eight processes on the CPU trains as one process: a sample, and with --full all twenty.

In the sample, and in all twenty, each two choices meet: axes, sequence parallelism, MC2, recomputation, the stage of
sharding, interleaving, grouped heads, tied embeddings. The last micro-batch has a row less than the others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import paddle
import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from fusionkit.policy import use_mc2
from tests.llama.layouts import all_pairs, covering, pairs, title
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import TINY, Run, require_same_training, trained

EVERY = [Degrees(*each) for each in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(each) == 8]
EVERY_WAY = covering(EVERY)
SAMPLE = covering([each for each in EVERY if max(dataclasses.astuple(each)) == 2])  # three axes each
MICRO_BATCHES = 8  # one for each copy, where there are as many


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, run, first weights) of one process, by the model's layers, grouped heads and tied embeddings."""

    @functools.cache
    def made(layers, grouped, tied):
        paddle.seed(8)
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4 if grouped else 8, "head_dim": 6}
        sizes = {"num_hidden_layers": layers, "tie_word_embeddings": tied, "initializer_range": 0.1}
        folder = tmp_path_factory.mktemp("eight")
        Llama(dataclasses.replace(TINY, **heads, **sizes)).save_pretrained(folder)
        return folder, trained(folder, Mesh(), MICRO_BATCHES), Run(folder, Mesh()).arrays()

    return made


def cases():
    for run in [*SAMPLE, *(run for run in EVERY_WAY if run not in SAMPLE)]:
        yield pytest.param(*run, id=title(*run), marks=[] if run in SAMPLE else pytest.mark.full)


@pytest.mark.parametrize(("degrees", "choice"), list(cases()))
def test_eight_processes_train_as_one(alone, degrees, choice):
    layers = max(4, 8 if degrees.pipeline > 2 else 0)  # for each stage, and for two ranges of each
    folder, *expected = alone(layers, choice["grouped"], choice["tied"])

    def run(mesh):
        divided = dataclasses.replace(mesh.tensor, sequence_parallel=choice.get("sequence", True))
        with use_mc2(choice.get("mc2", True)):
            again = choice.get("granularity")
            return trained(folder, dataclasses.replace(mesh, tensor=divided), MICRO_BATCHES, recompute=again)

    runs = on_mesh(degrees, run, choice.get("stage", 1), choice.get("chunks", 1))
    require_same_training(runs, *expected)


def test_the_sample_and_all_twenty_let_each_pair_of_choices_meet():
    assert len(EVERY) == 20
    for runs in (SAMPLE, EVERY_WAY):
        assert set().union(*(pairs(*each) for each in runs)) >= all_pairs(EVERY)
