"""Memory by formulas is that of the Llama example's own account, which its tests compare with what a run has."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from fusionkit_planner import architecture, training_memory
from fusionkit_planner.layout import Layout

from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from examples.llama2_13b.train import memory
from examples.llama2_13b.train.kept import DEVICE, FUSED
from tests.llama.conftest import EXAMPLE

TINY = EXAMPLE / "configs" / "tiny.json"
LAYERS, SEQUENCE = 6, 128
AGAIN = {"none": None, "selective": "core_attn", "full": "full"}
LAYOUTS = [
    Layout(),
    Layout(micro_batches=4, micro_batch=2),
    Layout(micro_batches=3, recompute="full"),
    Layout(micro_batches=3, recompute="selective"),
    Layout(tensor=2, micro_batches=2),
    Layout(tensor=2, micro_batches=2, sequence_parallel=True),
    Layout(pipeline=2, micro_batches=8),
    Layout(pipeline=3, micro_batches=2, micro_batch=2),
    Layout(pipeline=4, micro_batches=5),
    Layout(pipeline=2, virtual_stages=3, micro_batches=8),
    Layout(sharding=4, micro_batches=2),
    Layout(sharding=4, stage=2, micro_batches=2),
    Layout(sharding=4, stage=3, micro_batches=2, recompute="full"),
    Layout(tensor=2, pipeline=2, sharding=2, micro_batches=4, recompute="full", sequence_parallel=True),
]


def named(layout):
    """What differs from one device."""
    given = dataclasses.asdict(layout).items()
    return "-".join(f"{name}:{value}" for name, value in given if value != getattr(Layout(), name)) or "one"


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(
        LlamaConfig.from_json(TINY), num_hidden_layers=LAYERS, max_position_embeddings=SEQUENCE
    )
    return Llama(config)


def accounted(model, layout, kernels):
    """By the example: of each stage, the ranks."""
    ranks = {
        "tensor": SimpleNamespace(world_size=layout.tensor, rank=0),
        "sharding": SimpleNamespace(world_size=layout.sharding, rank=0),
        "pipeline": SimpleNamespace(world_size=layout.pipeline, rank=0),
    }
    degrees = Degrees(1, layout.pipeline, layout.sharding, layout.tensor)
    mesh = Mesh(
        tensor=TensorParallel(ranks["tensor"], layout.sequence_parallel),
        sharding=Sharding(ranks["sharding"], layout.stage),
        pipeline=PipelineParallel(ranks["pipeline"], layout.virtual_stages),
    )
    model.recompute = AGAIN[layout.recompute]
    step = memory.Step(layout.micro_batch, SEQUENCE, layout.micro_batches)
    kinds = dict.fromkeys(memory.kinds_of(model, Mesh(), step), kernels) | {"column": FUSED, "row": FUSED}
    kinds["fused_adamw"] = FUSED
    found = [memory._of_rank(rank, degrees, model, mesh, step, kinds) for rank in range(degrees.processes)]
    stages = range(layout.pipeline)
    return [[one for one in found if one.stage == stage] for stage in stages]


@pytest.mark.parametrize("kernels", [FUSED, DEVICE])
@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_a_stage_has_what_the_llama_example_accounts(model, layout, kernels):
    sizes = architecture.read(TINY)
    sizes = dataclasses.replace(sizes, num_hidden_layers=LAYERS)
    precision = model.activation_dtype
    found = training_memory.memory(sizes, layout, SEQUENCE, precision, kernels)
    for ours, ranks in zip(found, accounted(model, layout, kernels), strict=True):
        most = max(ranks, key=lambda one: (one.optimizer, -one.rank))
        assert (ours.parameters, ours.optimizer) == (most.parameters, most.optimizer)
        assert (
            ours.gradients == most.gradients or layout.micro_batches <= layout.pipeline
        )  # not all at the worst moment
        worst = max(ranks, key=lambda one: one.peak)
        assert ours.peak + memory.tables_of(model) == pytest.approx(worst.peak, rel=0.05), (ours.moment, worst.moment)


def test_the_items_are_the_whole_and_say_what_shrinks_them():
    sizes = architecture.read(EXAMPLE / "configs" / "llama2_13b.json")
    layout = Layout(tensor=8, micro_batches=4, sequence_parallel=True)
    (stage,) = training_memory.memory(sizes, layout, 4096)
    assert sum(item.num_bytes for item in stage.items) == pytest.approx(stage.total)
    largest = stage.largest(5)
    assert len(largest) == 5 and all(item.shrink for item in largest)
    assert largest[0].name == "moments of the optimizer"  # 8 bytes for each of 13 billion weights on 8 devices
    assert largest[0].num_bytes == pytest.approx(8 * sizes.parameters / 8, rel=1e-3)
    (full,) = training_memory.memory(sizes, dataclasses.replace(layout, recompute="full"), 4096)
    assert full.total < stage.total


@pytest.mark.parametrize("change", [{"sharding": 2}, {"tensor": 4}, {"recompute": "full"}])
def test_what_divides_or_recomputes_needs_less(change):
    sizes = architecture.read(EXAMPLE / "configs" / "llama2_13b.json")
    plain = Layout(tensor=2, micro_batches=4, sequence_parallel=True)
    before = max(stage.total for stage in training_memory.memory(sizes, plain, 4096))
    after = max(stage.total for stage in training_memory.memory(sizes, dataclasses.replace(plain, **change), 4096))
    assert after < before
