"""Every way to lay out eight processes on the CPU trains as one process: a sample, and with --full all twenty."""

from __future__ import annotations

import dataclasses
import itertools
import math

import paddle
import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import TINY, Run, require_same_training, trained

EVERY = [Degrees(*each) for each in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(each) == 8]
SAMPLE = [Degrees(pipeline=2, sharding=2, tensor=2), Degrees(data=2, pipeline=2, sharding=2)]
MICRO_BATCHES = 8  # one for each copy, where there are as many


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Layers and heads for eight."""
    paddle.seed(8)
    sizes = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 6}
    folder = tmp_path_factory.mktemp("eight")
    Llama(dataclasses.replace(TINY, **sizes, initializer_range=0.1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return trained(folder, Mesh(), MICRO_BATCHES), Run(folder, Mesh()).arrays()


def described(degrees):
    return "-".join(f"{axis}{degree}" for axis, degree in dataclasses.asdict(degrees).items() if degree > 1)


@pytest.mark.parametrize(
    "degrees",
    [pytest.param(each, id=described(each), marks=[] if each in SAMPLE else pytest.mark.full) for each in EVERY],
)
def test_eight_processes_train_as_one(folder, alone, degrees):
    """With tensor parallelism stages are interleaved where the layers suffice; without it gradients are sharded too."""
    chunks = 2 if degrees.tensor > 1 and 1 < degrees.pipeline < 8 else 1
    stage = 2 if degrees.sharding > 1 and degrees.tensor == 1 else 1
    runs = on_mesh(degrees, lambda mesh: trained(folder, mesh, MICRO_BATCHES), stage, chunks)
    require_same_training(runs, *alone)


def test_there_are_twenty_ways():
    assert len(EVERY) == 20 and all(each in EVERY for each in SAMPLE)
