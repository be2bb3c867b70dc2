"""An adapter trains as in one process where axes, recomputation, sharding and a tied embedding come together."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import Run, folder_of  # noqa: F401

LAYOUTS = {  # degrees, chunks, stage of sharding, layers, tied, recomputation, micro-batches
    "pp2-sharding2-interleaved-stage3": (Degrees(pipeline=2, sharding=2), 2, 3, 4, True, "full", 3),
    "pp2-sharding2-tp2-stage3": (Degrees(pipeline=2, sharding=2, tensor=2), 1, 3, 3, False, "core_attn", 3),
    "dp2-sharding2-tp2-stage2": (Degrees(data=2, sharding=2, tensor=2), 1, 2, 2, True, "full_attn", 5),
    "dp2-pp2-tp2-interleaved": (Degrees(data=2, pipeline=2, tensor=2), 2, 1, 4, False, None, 3),
}


def new_adapter(folder, **how):
    return LoraLlama.with_new_adapter(folder, AdapterConfig(rank=4, alpha=8, targets=("q_proj", "down_proj")), 7, **how)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_adapter_trains_as_in_one_process(folder_of, tmp_path, name):  # noqa: F811
    degrees, chunks, stage, layers, tied, recompute, count = LAYOUTS[name]

    def run(mesh):
        found = Run(folder_of(layers, tied=tied), mesh, open_model=new_adapter, recompute=recompute).train(2, count)
        evaluated = found.evaluate()
        if mesh.holds_weights:
            found.model.save_pretrained(tmp_path / str(mesh.processes))
        return found.losses, found.norms, evaluated

    alone, *runs = run(Mesh()), *on_mesh(degrees, run, stage, chunks)
    for found in runs:
        for ours, expected in zip(found, alone, strict=True):
            assert ours == pytest.approx(expected, rel=1e-5)
    one, many = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("1", str(degrees.processes)))
    assert one.keys() == many.keys() and all(value.any() for value in many.values())
    moved, apart = (np.sqrt(sum(np.sum((one[n] - many[n] * other) ** 2) for n in one)) for other in (0, 1))
    assert apart < 1e-3 * moved
