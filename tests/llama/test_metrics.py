"""What a step's line says of its speed: real tokens of all copies, and MFU of each device."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from examples.llama2_13b.data.packing import one_a_row
from examples.llama2_13b.data.sample_batches import SampleBatches
from examples.llama2_13b.data.samples import IGNORED, Sample
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.train import trainer
from examples.llama2_13b.train.loss import next_token
from examples.llama2_13b.train.metrics import model_flops
from examples.llama2_13b.train.optimizer import AdamW
from tests.llama.meshes import making_a_model, on_mesh

LENGTHS = [5, 9, 3, 12]  # padded to 9 and 12, or all to 12
SECONDS = 2.0


@pytest.fixture
def steps_take_two_seconds(monkeypatch):
    own = threading.local()

    def now():
        own.seconds = getattr(own, "seconds", 0.0) + SECONDS
        return own.seconds

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=now))


@pytest.mark.usefixtures("steps_take_two_seconds")
@pytest.mark.parametrize(
    "degrees",
    [Degrees(), Degrees(data=2), Degrees(sharding=2), Degrees(tensor=2), Degrees(pipeline=2)],
    ids=["one", "data2", "sharding2", "tensor2", "pipeline2"],
)
def test_a_line_counts_real_tokens_of_the_job_and_the_use_of_each_device(sft_flags, tiny_folder, degrees):
    flags = sft_flags(per_device_train_batch_size=2 // (degrees.data * degrees.sharding), gradient_accumulation_steps=2)
    # A source is read and is no target.
    samples = [Sample(list(range(length)), [IGNORED, *range(2, length + 1)]) for length in LENGTHS]
    data, none = (SampleBatches(some, one_a_row, None, 0) for some in (samples, []))

    def line(mesh):
        with making_a_model(mesh.world):
            how = {"shards": mesh.tensor, "pipeline": mesh.pipeline, "sharding": mesh.sharding}
            model = Llama.from_pretrained(tiny_folder, **how)
        optimizer = AdamW(model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        run = trainer.Trainer(flags, mesh, model, optimizer, next_token, data, none, {})
        flops = model_flops(model.config, model.table, LENGTHS)
        return run._step(data.rows(), peak_flops=1e9), flops

    for found, flops in on_mesh(degrees, line):
        assert found["tokens_per_second"] == sum(LENGTHS) / SECONDS
        assert found["tokens_per_second_per_device"] == sum(LENGTHS) / SECONDS / degrees.processes
        assert found["mfu"] == pytest.approx(flops / SECONDS / (1e9 * degrees.processes))
