"""The Llama in stages against the whole one: losses and gradients."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import paddle
import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.config import LlamaConfig
from examples.llama2_13b.parallel.pipeline import ONE_STAGE, PipelineParallel
from fusionkit.parallel.parity import run_ranks
from tests.llama.conftest import EXAMPLE

TINY = LlamaConfig.from_json(EXAMPLE / "configs" / "tiny.json")
one_at_a_time = threading.Lock()  # Paddle builds lazy layers by replacing a function of the whole process
# stages, chunks, layers, micro-batches
LAYOUTS = [(2, 1, 2, 4), (2, 1, 5, 3), (3, 1, 4, 1), (3, 1, 5, 7), (2, 2, 5, 3), (2, 2, 4, 4)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A model folder of so many layers."""
    folder = tmp_path_factory.mktemp("layers")

    def made(layers):
        if not (folder / str(layers)).exists():
            paddle.seed(layers)
            config = dataclasses.replace(TINY, num_hidden_layers=layers, initializer_range=0.1)
            Llama(config).save_pretrained(folder / str(layers))
        return folder / str(layers)

    return made


def micro_batches(count):
    """Of different lengths, as without packing; the last has a row less."""
    random = np.random.default_rng(count)
    for number in range(count):
        rows = 1 if number == count - 1 else 2
        ids, labels = random.integers(0, TINY.vocab_size, (2, rows, 16 + number % 3))
        labels[0, :5] = -100
        yield ids, labels


class Run:
    """A step of the model, or of a stage of it, with an evaluation after it."""

    def __init__(self, folder, count, pipeline=ONE_STAGE, **arguments):
        with one_at_a_time:
            model = Llama.from_pretrained(folder, pipeline=pipeline, **arguments)
        batches = [[paddle.to_tensor(array) for array in batch] for batch in micro_batches(count)]
        targets = sum(int((labels != -100).sum()) for _, labels in batches)

        def forward(number, chunk, received):
            ids, labels = batches[number]
            if pipeline.ends_with(chunk):
                return model.loss(ids, labels, received_TH=received)[0]
            return model.hand_on(chunk, ids, None, None, received)

        shapes = [model.handed_on_shape(*ids.shape) for ids, _ in batches]
        self.loss = pipeline.train(forward, shapes, model.activation_dtype, targets)
        self.gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
        self.values = {name: parameter.numpy() for name, parameter in model.named_parameters()}
        model.eval()
        self.evaluated = pipeline.evaluate(forward, shapes, model.activation_dtype)


def in_stages(stages, chunks, *arguments, **named):
    return run_ranks(
        stages, lambda rank, communicator: Run(*arguments, PipelineParallel(communicator, chunks), **named)
    )


def joined(parts):
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names)), "each parameter has one stage"
    return {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("stages", "chunks", "layers", "count"), LAYOUTS)
def test_stages_compute_what_one_process_does(folder_of, stages, chunks, layers, count, recompute):
    alone = Run(folder_of(layers), count, recompute=recompute)
    runs = in_stages(stages, chunks, folder_of(layers), count, recompute=recompute)
    assert [run.loss for run in runs[:-1]] == [run.evaluated for run in runs[:-1]] == [0] * (stages - 1)
    assert runs[-1].loss == pytest.approx(alone.loss, rel=1e-6)
    assert runs[-1].evaluated == pytest.approx(alone.evaluated, rel=1e-6)
    gradients, values = (joined([getattr(run, name) for run in runs]) for name in ("gradients", "values"))
    assert gradients.keys() == alone.gradients.keys() == values.keys()
    for name, exact in alone.gradients.items():
        np.testing.assert_array_equal(values[name], alone.values[name], err_msg=name)
        np.testing.assert_allclose(gradients[name], exact, rtol=0, atol=2e-6 * np.abs(exact).max(), err_msg=name)
