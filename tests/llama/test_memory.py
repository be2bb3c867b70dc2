"""The memory that is predicted of a rank: its parameters, its optimizer state, and what is kept of micro-batches."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.train import memory
from examples.llama2_13b.train.held import Held, held
from examples.llama2_13b.train.optimizer import AdamW
from tests.llama.conftest import EXAMPLE
from tests.llama.meshes import making_a_model, on_mesh

TINY = EXAMPLE / "configs" / "tiny.json"


@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_has_the_parameters_that_are_predicted(tied):
    config = dataclasses.replace(LlamaConfig.from_json(TINY), num_hidden_layers=5, tie_word_embeddings=tied)
    for stage in range(2):
        mesh = Mesh(pipeline=PipelineParallel(SimpleNamespace(world_size=2, rank=stage), chunks=2))
        model = Llama(config, pipeline=mesh.pipeline)
        wanted = {name: parameter.size for name, parameter in model.named_parameters()}
        found = held(model, mesh, {"pipeline": stage, "sharding": 0, "tensor": 0})
        assert list(found.sizes.items()) == list(wanted.items())  # owners follow from the order, too
        assert found.owners.keys() == found.owned == wanted.keys() and not found.elsewhere
        shapes = memory.shapes_of(model, mesh, step := memory.Step(2, 16, 4), memory.kinds_of(model, mesh, step), 0)
        passes = memory.Passes(model, mesh, stage, shapes, found)
        most, worst = passes.walk(step.micro_batches)
        assert 0 < most <= worst.beside


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Tied embeddings with 513 entries of the vocabulary, which two ranks divide unevenly, and an MLP of that size."""
    root, config = tmp_path_factory.mktemp("uneven"), LlamaConfig.from_json(TINY)

    def made(inner):
        folder = root / str(inner)
        if not folder.exists():
            sizes = {"vocab_size": 513, "intermediate_size": inner, "num_hidden_layers": 3, "tie_word_embeddings": True}
            Llama(dataclasses.replace(config, **sizes)).save_pretrained(folder)
        return folder

    return made


# By the smaller part of the vocabulary owners of the first would be others, and by size alone those of the second.
@pytest.mark.parametrize(
    "degrees, inner", [(Degrees(sharding=2, tensor=2), 256), (Degrees(pipeline=2, sharding=2), 600)], ids=["tp", "pp"]
)
@pytest.mark.parametrize("stage", [1, 3], ids=["stage1", "stage3"])
@pytest.mark.parametrize("is_lora", [False, True], ids=["full", "lora"])
def test_each_rank_has_the_parameters_and_the_state_that_are_predicted(folder_of, degrees, inner, stage, is_lora):
    folder = folder_of(inner)

    def measured(mesh):
        how = {"shards": mesh.tensor, "pipeline": mesh.pipeline, "sharding": mesh.sharding}
        with making_a_model(mesh.world):
            if is_lora:
                model = LoraLlama.with_new_adapter(folder, AdapterConfig(3, 6.0), seed=1, **how)
            else:
                model = Llama.from_pretrained(folder, **how)
        own = AdamW(model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0).own()
        kept = [parameter.size for parameter in model.parameters() if parameter._is_initialized()]
        predicted, less = (memory.predict(model, mesh, memory.Step(1, 16, count)) for count in (2, 1))
        return 4 * sum(kept), 8 * sum(parameter.size for parameter in own.values()), predicted, less

    found = on_mesh(degrees, measured, stage)
    for rank, (parameters, optimizer, predicted, less) in enumerate(found):
        both = degrees.pipeline == 2 and predicted[rank].stage == 0  # micro-batches before the first goes back
        assert predicted[rank].activations == less[rank].activations * (2 if both else 1)
        assert predicted == found[0][2]  # any process predicts for all
        assert (predicted[rank].parameters, predicted[rank].optimizer) == (parameters, optimizer)
        assert predicted[rank].peak > parameters + optimizer + predicted[rank].gradients


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 7])
def test_a_stage_keeps_as_many_micro_batches_as_stages_follow(monkeypatch, micro_batches):
    """And itself: Narayanan et al. 2021, arXiv:2104.04473, section 2.2. What it has sent is on its way."""
    modules = [memory.Module(name, kept, frozenset(), 0, 0) for name, kept in (("one", 3), ("other", 7))]
    monkeypatch.setattr(memory.Passes, "_modules", lambda self, chunk: modules)
    for stage in range(4):
        mesh = Mesh(pipeline=PipelineParallel(SimpleNamespace(world_size=4, rank=0)))
        sent = SimpleNamespace(stream=1)
        most, worst = memory.Passes(None, mesh, stage, sent, Held({}, {}, {}, 0, set())).walk(micro_batches)
        assert most == worst.beside - (stage < 3) == 10 * min(micro_batches, 4 - stage)


def test_matrices_of_two_layers_are_there_in_a_backward_pass():
    """Of the layer, and of the one that computes next; an embedding's rows are looked up."""
    mesh, config = Mesh(sharding=Sharding(SimpleNamespace(world_size=3, rank=0), 3)), LlamaConfig.from_json(TINY)
    model = Llama(config)
    found = held(model, mesh, {"pipeline": 0, "sharding": 0, "tensor": 0})
    shapes = memory.shapes_of(model, mesh, step := memory.Step(2, 16, 4), memory.kinds_of(model, mesh, step), 0)

    def elsewhere(*prefixes):
        return 4 * sum(found.sizes[name] for name in found.elsewhere if name.startswith(prefixes))

    first, second = elsewhere("layers.0."), elsewhere("layers.1.")
    embedding, *modules = memory.Passes(model, mesh, 0, shapes, found)._modules(0)
    assert first and second and embedding.borrowed == first
    expected = [first, first, first + second, first + second, second + elsewhere("lm_head.")]
    assert [module.borrowed for module in modules] == expected


def test_a_composed_update_holds_what_is_predicted():
    """Of the parameter that it updates last, by the host's own account."""
    core, count = paddle.base.core, 2**20
    tensors = [paddle.ones([count]) for _ in range(4)]
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    fk.ledger().reset()
    with fk.use_backend("eager"):
        fk.fused_adamw(*tensors, learning_rate=1e-3, beta1_power=0.9, beta2_power=0.999, grad_scale=0.5)
    assert {used for _, used, _ in fk.ledger()} == {"eager"}
    held = core.host_memory_stat_peak_value("Allocated", 0) - before
    assert held == pytest.approx(memory.COMPOSED_UPDATE * 4 * count, rel=1e-3)


def test_a_composed_update_may_be_the_worst_moment(monkeypatch):
    """Of one short row the passes keep less than the update of the largest parameter holds beside its gradient."""
    model, mesh, step = Llama(LlamaConfig.from_json(TINY)), Mesh(), memory.Step(1, 2, 1)
    largest = max(parameter.size for parameter in model.parameters())
    (fused,) = memory.predict(model, mesh, step)
    with fk.use_backend("eager"):
        (composed,) = memory.predict(model, mesh, step)
    for one, more in ((fused, 0), (composed, 4 * memory.COMPOSED_UPDATE * largest)):
        update = one.parameters + one.gradients + one.optimizer + memory.tables_of(model) + more
        assert one.peak >= update
    assert composed.moment == "the optimizer's update" and composed.peak == update and composed.workspace > more
