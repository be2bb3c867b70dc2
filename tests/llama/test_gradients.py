"""Where the mean of a gradient over copies of the model lies: a large one is neither joined with others nor copied."""

from __future__ import annotations

import numpy as np
import paddle

from examples.llama2_13b.parallel import gradients
from examples.llama2_13b.parallel.degrees import Degrees
from tests.llama.meshes import on_mesh


def test_a_large_gradient_becomes_the_mean_in_its_own_memory(monkeypatch):
    """Neighbours that are small travel together: before it and after it."""
    monkeypatch.setattr(gradients, "BUCKET_ELEMENTS", 1000)

    def work(mesh):
        parameters = [paddle.create_parameter(shape, "float32") for shape in ([8], [40, 50], [16])]
        for number, parameter in enumerate(parameters):
            (parameter * float(1 + number + 4 * mesh.data.rank)).sum().backward()
        _, large, _ = parameters
        before = large.grad.data_ptr()
        gradients.Gradients(mesh, parameters).reduce()
        return large.grad.data_ptr() == before, [parameter.grad.numpy() for parameter in parameters]

    for stays, means in on_mesh(Degrees(data=2), work):
        assert stays
        for number, mean in enumerate(means):
            np.testing.assert_array_equal(mean, np.full(mean.shape, 3.0 + number, np.float32))


def test_a_large_one_is_alone():
    sizes = {"norm": 5120, "down": 13824 * 5120, "head": gradients.BUCKET_ELEMENTS, "other norm": 5120}
    found = gradients.in_buckets([(name, 0) for name in sizes], sizes.__getitem__)
    assert found == [(0, ["down"]), (0, ["head"]), (0, ["norm", "other norm"])]
