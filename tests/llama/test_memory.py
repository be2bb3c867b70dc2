"""The memory that is predicted of a stage's rank: the parameters that the stage's model has."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.config import LlamaConfig
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.train import memory
from tests.llama.conftest import EXAMPLE


@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_has_the_parameters_that_are_predicted(tmp_path, tied):
    sizes = json.loads((EXAMPLE / "configs" / "tiny.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 5, "tie_word_embeddings": tied}))
    config = LlamaConfig.from_json(tmp_path / "config.json")
    for stage in range(2):
        mesh = Mesh(pipeline=PipelineParallel(SimpleNamespace(world_size=2, rank=stage), chunks=2))
        model = Llama(config, pipeline=mesh.pipeline)
        wanted = {name: parameter.size for name, parameter in model.named_parameters()}
        assert memory.elements(model, mesh, stage, 0) == wanted
        shapes = memory.shapes_of(model, mesh, step := memory.Step(2, 16, 4), memory.kinds_of(model, mesh, step), 0)
        passes = memory.Passes(model, mesh, stage, shapes, wanted, None)
        most, worst = passes.walk(step.micro_batches)
        assert 0 < most <= worst.beside
