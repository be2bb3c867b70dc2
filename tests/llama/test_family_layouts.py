"""Biases and sliding windows divided over processes against one process: training, checkpoints, adapters, memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest

from examples.llama2_13b.merge import MergeFlags, merge
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import memory
from examples.llama2_13b.train.optimizer import AdamW
from tests.llama import test_pipeline, test_tensor_parallel
from tests.llama.meshes import making_a_model, on_mesh
from tests.llama.test_lora import LoraRun, logits
from tests.llama.test_tensor_parallel import on_two

FAMILY = {
    "biases": {"attention_bias": True},
    "qwen2": {
        "model_type": "qwen2",
        "sliding_window": 7,
        "sliding_layers": (True, False, True),
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder whose biases are not zero."""
    root = tmp_path_factory.mktemp("family")

    def made(name):
        folder = root / name
        with making_a_model():  # all ranks may ask
            if not folder.exists():
                paddle.seed(1)
                sizes = {"num_hidden_layers": 3, "initializer_range": 0.1, **FAMILY[name]}
                model = Llama(dataclasses.replace(test_pipeline.TINY, **sizes))
                for parameter_name, parameter in model.named_parameters():
                    if parameter_name.endswith("bias"):
                        parameter.set_value(0.1 * paddle.randn(parameter.shape))
                model.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def alone_of(folder_of):
    """(a run of one process, what it began with); runs are made once."""
    runs = {}

    def made(name):
        if name not in runs:
            first = test_pipeline.Run(folder_of(name), Mesh()).arrays()
            runs[name] = test_pipeline.trained(folder_of(name), Mesh(), 3), first
        return runs[name]

    return made


LAYOUTS = {  # model, degrees, stage of sharding
    "biases-tp2": ("biases", Degrees(tensor=2), 1),
    "biases-pp2-tp2": ("biases", Degrees(pipeline=2, tensor=2), 1),
    "biases-sharding2-tp2-stage3": ("biases", Degrees(sharding=2, tensor=2), 3),
    "qwen2-pp2-sharding2-stage2": ("qwen2", Degrees(pipeline=2, sharding=2), 2),
    "qwen2-sharding2-tp2-stage3": ("qwen2", Degrees(sharding=2, tensor=2), 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_as_one_process(folder_of, alone_of, layout):
    name, degrees, stage = LAYOUTS[layout]
    alone, first = alone_of(name)
    runs = on_mesh(degrees, lambda mesh: test_pipeline.trained(folder_of(name), mesh, 3), stage)
    test_pipeline.require_same_training(runs, alone, first)


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
def test_gradients_of_two_ranks_are_those_of_one(folder_of, sequence_parallel):
    """Of a bias of columns each rank has its part, of rows the whole, from its own tokens or from all."""
    folder = folder_of("biases")
    alone = test_tensor_parallel.Run(folder).train(1)
    runs = on_two(lambda shards: test_tensor_parallel.Run(folder, shards).train(1), sequence_parallel)
    test_tensor_parallel.require_same_training(runs, alone)
    assert {f"model.layers.2.self_attn.{name}_proj.bias" for name in "qkvo"} < alone.gradients.keys()


def test_a_checkpoint_of_two_ranks_goes_on_alone(folder_of, tmp_path):
    folder = folder_of("biases")
    whole = test_tensor_parallel.Run(folder).train(2)
    on_two(lambda shards: test_tensor_parallel.Run(folder, shards).train(1).save(tmp_path / "checkpoint"))
    resumed = test_tensor_parallel.Run(tmp_path / "checkpoint", start=1).train(1)
    assert resumed.losses == pytest.approx(whole.losses[1:], rel=1e-5)
    moments, expected = resumed.moments(), whole.moments()
    name = "model.layers.0.self_attn.o_proj.bias"
    np.testing.assert_allclose(moments[name], expected[name], rtol=1e-3, atol=1e-9)


def test_an_adapter_over_frozen_biases_trains_on_two_ranks_and_merges(folder_of, tmp_path):
    folder = folder_of("biases")
    alone = LoraRun(folder).train(2)
    runs = on_two(lambda shards: LoraRun(folder, shards).train(2))
    test_tensor_parallel.require_same_training(runs, alone)
    alone.model.save_pretrained(tmp_path / "adapter")
    merge(MergeFlags(str(folder), str(tmp_path / "adapter"), str(tmp_path / "merged")))
    unmerged = logits(LoraLlama.with_adapter(folder, tmp_path / "adapter"))
    np.testing.assert_allclose(logits(Llama.from_pretrained(tmp_path / "merged")), unmerged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 3], ids=["stage1", "stage3"])
def test_each_rank_has_the_parameters_and_the_state_that_are_predicted(folder_of, stage):
    folder = folder_of("biases")

    def measured(mesh):
        with making_a_model(mesh.world):
            model = Llama.from_pretrained(folder, shards=mesh.tensor, sharding=mesh.sharding)
        own = AdamW(model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0).own()
        kept = sum(parameter.size for parameter in model.parameters() if parameter._is_initialized())
        predicted = memory.predict(model, mesh, memory.Step(1, 16, 1))[mesh.rank]
        return (4 * kept, 8 * sum(parameter.size for parameter in own.values())), predicted

    for held, predicted in on_mesh(Degrees(sharding=2, tensor=2), measured, stage):
        assert (predicted.parameters, predicted.optimizer) == held
